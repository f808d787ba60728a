"""A panel of judges and a check in the real processes: what rows tell of them, and the rubric's text that is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import STUB_TASK, openai_record, processes, produce, toy_answer, wait_for
from stub_models import Reply, StubModels

from schemas.settings import Settings
from schemas.settings.rubric_file import kept_path, read_rubric
from streams.gold import query
from streams.topics import create_topics, ensure_source_topic

PANEL = """
[tasks.toy.panel]
judges = [
  {{ model = "hosted_vllm/second-judge", api_base = "{api_base}", retries = 0 }},
  {{ model = "hosted_vllm/broken-judge", api_base = "{api_base}", retries = 0 }},
]
"""
RULE = '{{ id = "polite", text = "It says please." }}'
RULES = RULE + ', {{ id = "short", text = "Short.", check = {{ kind = "length", max_words = 3 }} }}'


def judged_by_three(request: dict[str, Any]) -> Reply:
    """The second judge overlooks everything in drafts of one word; the third says nothing that can be read."""
    if request["model"] == "broken-judge":
        return Reply("Looks good to me!")
    draft = request["messages"][-1]["content"].rpartition("<<<draft ")[2].partition("\n")[2].partition("\n<<<end")[0]
    if request["model"] == "second-judge" and draft == "wait":
        return Reply('{"violations": []}')
    reply = toy_answer({**request, "model": request["model"].replace("second-judge", "judge")})
    return Reply("please wait, my friend") if "verbose" in str(request) and reply.text == "please wait" else reply


def test_rows_tell_how_a_panel_decided(
    make_settings: Callable[..., Settings], models: StubModels, tmp_path: Path
) -> None:
    models.answer = judged_by_three
    toml = STUB_TASK.replace(RULE, RULES) + PANEL
    settings = make_settings(toml.format(topic="logs-panel", api_base=models.api_base))
    create_topics(settings)
    ensure_source_topic(settings, "logs-panel", partitions=1)
    records = [openai_record("already good", "req-good"), openai_record("verbose, already good", "req-verbose"),
               openai_record("question", "req-torn")]  # fmt: skip
    produce(settings, "logs-panel", records)

    def ended() -> list[tuple[Any, ...]]:
        return query(settings.gold, "SELECT case_id, outcome FROM outcomes ORDER BY case_id")[1]

    with processes(settings, tmp_path / "goldstream.toml", "intake", "worker", "retries", "sink") as supervisor:
        wait_for(lambda: len(ended()) >= len(records), "all outcomes", supervisor)
    # One judge of three fails the draft, one passes it, one cannot be read: nobody has a majority.
    assert ended() == [("req-good", "gold"), ("req-torn", "dead"), ("req-verbose", "unresolved")]
    _, rows = query(
        settings.gold,
        "SELECT case_id, round, passed, votes, agreement, judge, [v.rule FOR v IN violations], rubric FROM attempts "
        "WHERE round = 0 AND passed IS NOT NULL ORDER BY case_id",
    )
    both = "hosted_vllm/judge + hosted_vllm/second-judge"
    version = settings.task("toy").rubric.version()
    assert rows == [
        ("req-good", 0, True, 2, 1.0, both, [], version),
        ("req-verbose", 0, False, 2, 1.0, both, ["short"], version),
    ]
    assert read_rubric(kept_path(settings.state, version)) == settings.task("toy").rubric
    asked = [json.dumps(request) for request in models.requests if request["model"] == "judge"]
    assert asked
    assert not any("Short." in prompt for prompt in asked), "what a check decides no model is asked"
