"""An export in TRL's hands: it loads with `datasets`, trains a step, and is tokenised as our own training does it.

TRL stands in an environment of its own (`make test-full` sets it up), so a process of that environment does it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ended_cases import ended, land
from tiny import CALLING_TEMPLATE
from transformers import AutoTokenizer

from schemas.case import Message
from schemas.gold import current_watermark
from schemas.settings import Settings
from schemas.tools import answer_text
from streams.export.formats import Name
from streams.export.pairs import Choice
from streams.export.write import export_gold
from trainer.dataset import build_examples, train_rows

ROOT = Path(__file__).resolve().parent.parent
TRL = ROOT / ".goldstream" / "bench-trl" / "bin" / "python"
BASE = ROOT / "agents" / "scribe" / "student"

TOOL = {"type": "function", "function": {"name": "dose", "parameters": {"type": "object", "properties": {"of": {}}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "dose", "arguments": '{"of": "metformin"}'}}

pytestmark = pytest.mark.full


def trained(folder: Path, base: Path, cache: Path) -> dict[str, Any]:
    """Returns what tests/export_trl.py says of an export."""
    assert TRL.exists(), "run this through `make test-full`, which sets TRL up"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache)}
    command = [str(TRL), str(ROOT / "tests" / "export_trl.py"), str(folder), str(base)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", ["trl", "hf"])
def test_trl_trains_on_the_tokens_that_our_own_training_makes(tmp_path: Path, name: Name) -> None:
    settings = Settings(state_dir=str(tmp_path / "state"))
    asked = (Message("user", "dose?"), Message("assistant", None, tool_calls=[CALL]), Message("tool", "5 mg"))
    calling = ended(3, messages=asked, tools=(TOOL,))
    last = msgspec.structs.replace(calling.attempts[1], text=answer_text("Now:", (CALL,)), tool_calls=(CALL,))
    calling = msgspec.structs.replace(calling, attempts=(calling.attempts[0], last))
    land(settings.gold, [ended(0), ended(1, messages=asked, tools=(TOOL,)), ended(2, "unresolved"), calling])
    export_gold(settings, name, tmp_path / "out", Choice())

    base = tmp_path / "base"  # with a template that knows tools
    shutil.copytree(BASE, base)
    (base / "chat_template.jinja").write_text(CALLING_TEMPLATE)

    found = trained(tmp_path / "out", base, tmp_path / "cache")

    rows = train_rows(settings.gold, "scribe", current_watermark(settings.gold))
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    ours = build_examples(rows, tokenizer, recipe="rgt", strategy_weight=1.0, max_length=4096).examples
    assert (found["splits"], found["steps"]) == (["train"], 1)
    assert found["loss"] > 0
    assert [(row["case_id"], row["pair"]) for row in found["rows"]] == [(e.case_id, e.branch) for e in ours]
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]  # which the template writes after each turn
    for row, example in zip(found["rows"], ours, strict=True):
        assert row["input_ids"] == [*example.input_ids, *newline]
        masked = [label == -100 for label in row["labels"]]
        assert masked == [weight == 0 for weight in example.weights] + [False] * len(newline)
