"""Claims about the trainer: dataset, objective, loop, gate, registry, service and rollout.

Everything real but the judge (equality with an expected answer), Kafka (a list) and vLLM (a stub server).
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
from tiny import make_tiny_adapter, make_tiny_model

from schemas.adapters import AdapterManifest, AdapterRecord, GateReport, read_manifest, served_name, verify_adapter
from schemas.case import Attempt, Case, Message, Source, Strategy, Verdict, Violation
from schemas.chat import render_prompt
from schemas.errors import AdapterError, ModelRefused, ModelUnavailable, SettingsError, TrainingError
from schemas.gold import END_OFFSET, START_OFFSET, current_watermark, landing_folder, landing_name, read_chain
from schemas.outcomes import outcome_row, outcome_table
from schemas.settings import Gate, LocalModel, Model, Rubric, Rule, Settings, Task, Trainer
from trainer.dataset import Dataset, build_examples, train_rows
from trainer.gate import HoldoutCase, decide, freeze_holdout, holdout_cases, mcnemar, run_gate
from trainer.registry import (
    clear_leftovers,
    incumbent,
    lease,
    list_adapters,
    next_version,
    promote,
    promotions,
    publish,
    read_gate,
    write_gate,
)
from trainer.rollout import latest_records, run_rollout
from trainer.service import corrected_rows, read_status, run_trainer, student_base

STRATEGY = Strategy("listed a denied symptom", "leave out what the patient denies")
TOY = {"red": "stop", "green": "go", "amber": "wait", "blue": "none"}


# Toys


def a_case(
    case_id: str,
    question: str,
    answer: str = "",
    *,
    kind: str = "gold",
    split: str = "train",
    corrected: bool = True,
    strategy: Strategy | None = None,
    task: str = "toy",
) -> Case:
    """Returns an ended case: gold that a refiner corrected, unless told otherwise."""
    bad = Verdict(passed=False, score=0, max_score=1, judge="test")
    good = Verdict(passed=True, score=1, max_score=1, judge="test")
    attempts = [Attempt(round=0, source="student", text="?", model="m", verdict=bad)] if corrected else []
    if kind == "gold":
        attempts.append(Attempt(round=len(attempts), source="refiner", text=answer, model="m", verdict=good))
    case = Case(
        case_id=case_id,
        task=task,
        split=split,  # type: ignore[arg-type]
        source=Source(cluster="c", topic="t", partition=0, offset=0),
        messages=(Message("user", question),),
        attempts=tuple(attempts),
        strategy=strategy,
    )
    return case.ended(kind, "sink", 1)  # type: ignore[arg-type]


def add_gold(gold: Path, cases: Sequence[Case], partition: int = 0) -> None:
    """Writes cases as the next landing file of a partition."""
    chain = read_chain(gold, partition)
    start = chain[-1].end if chain else 0
    rows = [outcome_row(case, partition, start + index) for index, case in enumerate(cases)]
    metadata = {START_OFFSET: str(start).encode(), END_OFFSET: str(start + len(rows)).encode()}
    folder = landing_folder(gold, partition)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = gold / "half"  # the service may be reading
    pq.write_table(outcome_table(rows).replace_schema_metadata(metadata), temporary)
    temporary.rename(folder / landing_name(partition, start))


def toy_gold(gold: Path, copies: int = 1, strategy: Strategy | None = STRATEGY) -> None:
    train = [
        a_case(f"train-{color}-{n}", color, answer, strategy=strategy)
        for n in range(copies)
        for color, answer in TOY.items()
    ]
    holdout = [a_case(f"holdout-{color}", color, kind="holdout", split="holdout") for color in TOY]
    add_gold(gold, [*train, *holdout])


async def toy_judge(messages: Sequence[Message], answer: str) -> Verdict:
    passed = answer == TOY[messages[-1].text()]
    violations = () if passed else (Violation("exact"), Violation("exact"))
    return Verdict(passed=passed, score=float(passed), max_score=1, judge="toy", violations=violations)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def tokenizer(base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base, local_files_only=True)


@pytest.fixture
def settings(base: Path, tmp_path: Path) -> Settings:
    task = Task(
        topics=("log",),
        rubric=Rubric(rules=(Rule(id="exact", text="be exact"),)),
        student=Model(model="local/tiny", max_tokens=8),
        trainer=Trainer(
            rank=16, alpha=32, learning_rate=1e-2, epochs=30, batch_size=4, threads=1, min_corrected_rows=4
        ),
        gate=Gate(min_holdout=4, max_holdout=4),
    )
    return Settings(state_dir=str(tmp_path / "state"), local={"tiny": LocalModel(path=str(base))}, tasks={"toy": task})


def with_task(settings: Settings, **changes: Any) -> Settings:
    return msgspec.structs.replace(settings, tasks={"toy": msgspec.structs.replace(settings.tasks["toy"], **changes)})


def examples_of(
    tokenizer: Any, cases: Sequence[Case], recipe: Any = "rgt", weight: float = 1.0, limit: int = 512
) -> Dataset:
    table = outcome_table([outcome_row(case, 0, offset) for offset, case in enumerate(cases)])
    return build_examples(table, tokenizer, recipe=recipe, strategy_weight=weight, max_length=limit)


def wait_until(condition: Callable[[], Any], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition did not come true in time"
        time.sleep(0.01)


# Dataset


def test_pair_a_is_the_prompt_of_inference_then_the_answer_and_the_end_of_turn(tokenizer: Any) -> None:
    case = a_case("1", "what to do at red?", "stop, and wait")
    (example,) = examples_of(tokenizer, [case]).examples
    prompt = tokenizer(render_prompt(tokenizer, case.messages), add_special_tokens=False)["input_ids"]
    completion = [*tokenizer("stop, and wait", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert list(example.input_ids) == prompt + completion
    assert example.weights == (0.0,) * len(prompt) + (1.0,) * len(completion)
    text = tokenizer.decode(example.input_ids)
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nstop, and wait<|im_end|>")


def test_pair_b_thinks_the_strategy_at_its_weight_then_answers(tokenizer: Any) -> None:
    data = examples_of(tokenizer, [a_case("1", "red", "stop", strategy=STRATEGY)], weight=0.25)
    a, b = data.examples
    assert (a.branch, b.branch, data.cases) == ("A", "B", 1)
    thought = "<think>\nMistake: listed a denied symptom\nGuardrail: leave out what the patient denies\n</think>\n\n"
    assert (
        tokenizer.decode(b.input_ids)
        == f"<|im_start|>user\nred<|im_end|>\n<|im_start|>assistant\n{thought}stop<|im_end|>"
    )
    answer = len(tokenizer("stop", add_special_tokens=False)["input_ids"]) + 1
    assert set(b.weights[: b.prompt_tokens]) == {0.0}
    assert set(b.weights[b.prompt_tokens : -answer]) == {0.25}
    assert set(b.weights[-answer:]) == {1.0}


def test_only_rgt_and_only_rows_with_a_strategy_yield_pair_b(tokenizer: Any) -> None:
    cases = [a_case("1", "red", "stop", strategy=STRATEGY), a_case("2", "green", "go")]
    assert [(e.case_id, e.branch) for e in examples_of(tokenizer, cases).examples] == [
        ("1", "A"),
        ("1", "B"),
        ("2", "A"),
    ]
    assert [e.branch for e in examples_of(tokenizer, cases, recipe="isft").examples] == ["A", "A"]


def test_a_pair_over_max_length_is_counted_and_never_cut(tokenizer: Any) -> None:
    cases = [a_case("1", "red", "stop", strategy=STRATEGY)]
    whole = examples_of(tokenizer, cases)
    data = examples_of(tokenizer, cases, limit=len(whole.examples[0].input_ids))
    assert data.examples == whole.examples[:1]
    assert data.skipped == {"too_long": 1}


def test_text_that_would_end_the_turn_or_reopen_thinking_is_left_out(tokenizer: Any) -> None:
    cases = [
        a_case("1", "red", "stop<|im_end|>\n<|im_start|>user"),
        a_case("2", "red", "stop", strategy=Strategy("m", "</think> done")),
        a_case("3", "red", ""),
    ]
    data = examples_of(tokenizer, cases)
    assert [(e.case_id, e.branch) for e in data.examples] == [("2", "A")]
    assert data.skipped == {"control_text": 2, "empty_answer": 1}


def test_nothing_to_train_on_is_an_error_that_says_why(tokenizer: Any) -> None:
    with pytest.raises(TrainingError, match="no gold row of the train split"):
        examples_of(tokenizer, [])
    with pytest.raises(TrainingError, match=r"1 too_long.*raise trainer.max_length \(3\)"):
        examples_of(tokenizer, [a_case("1", "red", "stop")], limit=3)


def test_a_template_that_cannot_switch_thinking_off_is_refused_for_rgt(base: Path) -> None:
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(base, local_files_only=True)
    plain.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}A:"
    with pytest.raises(TrainingError, match='recipe = "isft"'):
        examples_of(plain, [a_case("1", "red", "stop", strategy=STRATEGY)])
    assert examples_of(plain, [a_case("1", "red", "stop", strategy=STRATEGY)], recipe="isft").cases == 1


def test_training_rows_are_gold_of_the_train_split_below_the_watermark(tmp_path: Path) -> None:
    early = [
        a_case("yes", "red", "stop"),
        a_case("held", "red", kind="holdout", split="holdout"),
        a_case("gold-of-holdout", "red", "stop", split="holdout"),
        a_case("failed", "red", kind="unresolved"),
        a_case("other", "red", "stop", task="other"),
    ]
    add_gold(tmp_path, early)
    pinned = current_watermark(tmp_path)
    add_gold(tmp_path, [a_case("late", "red", "stop")])
    assert train_rows(tmp_path, "toy", pinned)["case_id"].to_pylist() == ["yes"]


# Objective and loop


def test_cross_entropy_is_the_weighted_token_mean() -> None:
    import torch

    from trainer.objectives import cross_entropy

    assert cross_entropy(torch.tensor([-1.0, -3.0]), torch.tensor([1.0, 1.0])).item() == 2.0
    assert cross_entropy(torch.tensor([-1.0, -3.0]), torch.tensor([0.75, 0.25])).item() == 1.5


def test_trained_logprobs_equal_those_of_each_sequence_alone(base: Path, tokenizer: Any) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from trainer.loop import collate, merged_weights, trained_logprobs

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    cases = [a_case("1", "red", "stop", strategy=STRATEGY), a_case("2", "a much longer question " * 5, "go")]
    examples = examples_of(tokenizer, cases, weight=0.5).examples
    together, weights = trained_logprobs(model, *collate(examples, torch.device("cpu")), {})
    merged, _ = trained_logprobs(model, *collate(examples, torch.device("cpu")), merged_weights(model))
    assert torch.allclose(together, merged, atol=1e-4)
    alone = []
    for example in examples:
        logits = model(torch.tensor([example.input_ids])).logits[0].log_softmax(-1)
        alone += [logits[i - 1, t] for i, t in enumerate(example.input_ids) if example.weights[i] > 0]
    assert torch.allclose(together, torch.stack(alone), atol=1e-4)
    assert weights.tolist() == [w for e in examples for w in e.weights if w > 0]


def test_one_step_is_the_same_in_parts_and_with_merged_weights(
    base: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.numpy import load_file

    import trainer.loop

    examples = examples_of(tokenizer, [a_case(c, c, a, strategy=STRATEGY) for c, a in TOY.items()]).examples
    one_step = Trainer(rank=8, alpha=8, epochs=1, batch_size=4, threads=1)
    losses, weights = [], []
    for limit, merge in ((100_000, False), (100_000, True), (1, False), (1, True)):
        monkeypatch.setitem(trainer.loop.FORWARD_TOKENS, "cpu", limit)
        monkeypatch.setattr(trainer.loop, "merging_is_cheaper", lambda model, rank, merge=merge: merge)
        out = tmp_path / f"{limit}-{merge}"
        losses.append(trainer.loop.train_lora(base, examples, one_step, out).first_loss)
        weights.append(load_file(out / "adapter_model.safetensors"))
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)
    # Adam's first step is the sign of the gradient; where that is near 0 rounding decides.
    for other in weights[1:]:
        assert min((abs(other[k] - weights[0][k]) < 1e-6).mean() for k in other) > 0.98


def test_an_adapter_learns_four_lines_and_is_the_same_bit_by_bit_in_a_second_run(
    base: Path, tokenizer: Any, tmp_path: Path, settings: Settings
) -> None:
    from agents.local import LocalEngine
    from trainer.loop import train_lora

    examples = examples_of(tokenizer, [a_case(c, c, a, strategy=STRATEGY) for c, a in TOY.items()]).examples
    seen: list[tuple[int, int]] = []
    first = train_lora(
        base,
        examples,
        settings.tasks["toy"].trainer,
        tmp_path / "first",
        base_name="served/tiny",
        progress=lambda step, steps, loss, rate: seen.append((step, steps)),
    )
    assert seen == [(step, 30) for step in range(1, 31)]
    assert first.last_loss < 0.2 < first.first_loss
    lines = [json.loads(line) for line in (tmp_path / "first/steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert lines[0]["loss"] == first.first_loss
    config = json.loads((tmp_path / "first/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == ("served/tiny", 16, 32)

    train_lora(base, examples[::-1], settings.tasks["toy"].trainer, tmp_path / "second")
    weights = [(tmp_path / run / "adapter_model.safetensors").read_bytes() for run in ("first", "second")]
    assert weights[0] == weights[1]

    manifest = a_manifest(base, next_version(tmp_path, "toy", "abcdef"))
    folder = publish(tmp_path / "registry", tmp_path / "first", manifest)
    engine = LocalEngine(base, threads=1)
    try:
        engine.load_adapter("x", folder)
        answers = engine.generate_batch([[Message("user", c)] for c in TOY], adapter="x", max_tokens=8)
        assert [answer.text for answer in answers] == list(TOY.values())
    finally:
        engine.close()


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, base: Path, tokenizer: Any) -> None:
    from safetensors.numpy import load_file, save_file

    from trainer.loop import train_lora

    broken = make_tiny_model(tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    examples = examples_of(tokenizer, [a_case("1", "red", "stop")]).examples
    with pytest.raises(TrainingError, match=r"loss became nan at step 1 of 3.*learning_rate"):
        train_lora(broken, examples, Trainer(rank=4, threads=1), tmp_path / "out")
    assert not (tmp_path / "out/adapter_model.safetensors").exists()


# Gate


@pytest.mark.parametrize(
    ("gained", "lost", "p_value"),
    [(0, 0, 1.0), (1, 1, 1.0), (5, 0, 0.0625), (0, 6, 0.03125), (10, 2, 158 / 4096), (2, 10, 158 / 4096)],
)
def test_mcnemar_is_exact(gained: int, lost: int, p_value: float) -> None:
    assert mcnemar(gained, lost) == p_value


@pytest.mark.parametrize(
    ("cases", "before", "after", "p_value", "decision"),
    [
        (49, 0, 49, 0.0, "undecided"),
        (50, 10, 20, 0.5, "promote"),
        (50, 10, 12, 0.5, "refuse"),  # a gain of .04 is not above min_gain
        (50, 10, 10, 1.0, "refuse"),
        (50, 20, 10, 0.2, "refuse"),
        (50, 20, 10, 0.01, "refuse"),
    ],
)
def test_gate_decides(cases: int, before: int, after: int, p_value: float, decision: str) -> None:
    found, reason = decide(Gate(min_gain=0.05), cases, before, after, p_value)
    assert found == decision
    assert reason.startswith("significantly worse") == (p_value == 0.01)


class ToyEngine:
    """Answers from a table: version -> question -> answer."""

    base_sha256 = "0" * 64

    def __init__(self, answers: dict[str, dict[str, str]]) -> None:
        self.answers, self.closed = answers, False
        self.asked: list[str] = []

    def load_adapter(self, name: str, folder: Path) -> None:
        assert folder.name == name

    def unload_adapter(self, name: str) -> None:
        assert name

    def close(self) -> None:
        self.closed = True

    def generate_batch(self, prompts: Any, *, adapter: str, temperature: float, max_tokens: int) -> list[Any]:
        assert (temperature, max_tokens) == (0.0, 8)
        if any(p[-1].text() not in self.answers[adapter] for p in prompts):
            raise ModelRefused("beyond the context")
        self.asked.append(adapter)
        return [SimpleNamespace(text=self.answers[adapter][p[-1].text()]) for p in prompts]


COLORS = [HoldoutCase(color, [Message("user", color)]) for color in TOY]
NEW, OLD = "v0002-bbbbbb", "v0001-aaaaaa"


def test_gate_compares_both_on_the_same_cases_and_counts_rules(settings: Settings) -> None:
    engine = ToyEngine({NEW: TOY | {"red": "go"}, OLD: dict.fromkeys(TOY, "stop")})
    cache: dict[str, dict[str, str]] = {}
    report = run_gate(settings, "toy", engine, COLORS, candidate=NEW, incumbent=OLD, judge=toy_judge, cache=cache)
    assert (report.decision, report.cases, report.before, report.after) == ("promote", 4, 0.25, 0.75)
    assert (report.gained, report.lost, report.p_value) == (3, 1, 0.625)
    assert (report.violations_before, report.violations_after) == ({"exact": 3}, {"exact": 1})
    run_gate(settings, "toy", engine, COLORS, candidate=NEW, incumbent=OLD, judge=toy_judge, cache=cache)
    assert engine.asked == [OLD, NEW]  # the second gate took both from the cache


def test_gate_without_enough_holdout_asks_nobody(settings: Settings) -> None:
    engine = ToyEngine({})
    report = run_gate(settings, "toy", engine, COLORS[:3], candidate=NEW, incumbent="", judge=toy_judge)
    assert (report.decision, report.cases, engine.asked) == ("undecided", 3, [])
    assert "3 holdout cases" in report.reason


def test_a_case_beyond_the_context_counts_for_neither_and_too_many_are_an_error(settings: Settings) -> None:
    settings = with_task(settings, gate=Gate(min_holdout=3))
    short = {color: answer for color, answer in TOY.items() if color != "blue"}
    engine = ToyEngine({NEW: short, "": dict.fromkeys(TOY, "?")})
    report = run_gate(settings, "toy", engine, COLORS, candidate=NEW, incumbent="", judge=toy_judge)
    assert (report.cases, report.after) == (3, 1.0)
    assert "1 cases could not be judged" in report.reason

    async def judge_is_down(messages: Sequence[Message], answer: str) -> Verdict:
        raise ModelUnavailable("503")

    with pytest.raises(ModelUnavailable, match="only 0 of 4"):
        run_gate(settings, "toy", engine, COLORS, candidate=NEW, incumbent="", judge=judge_is_down)


def test_the_holdout_stays_frozen_grows_at_its_end_and_fills_the_place_of_erased_cases(tmp_path: Path) -> None:
    def some(*numbers: int) -> list[HoldoutCase]:
        return [HoldoutCase(str(n), []) for n in numbers]

    def ids(cases: list[HoldoutCase], limit: int = 5) -> list[str]:
        return [case.case_id for case in freeze_holdout(tmp_path, "toy", cases, limit)]

    first = ids(some(1, 2, 3))
    assert sorted(first) == ["1", "2", "3"]
    grown = ids(some(*range(1, 20)))
    assert (grown[:3], len(grown)) == (first, 5)
    assert ids(some(*range(1, 40))) == grown
    assert ids(some(*range(1, 40)), limit=2) == grown[:2]
    without = ids([case for case in some(*range(1, 40)) if case.case_id != grown[0]])
    assert without[:4] == grown[1:]
    assert len(without) == 5


def test_holdout_cases_are_those_that_ended_as_holdout(tmp_path: Path) -> None:
    toy_gold(tmp_path)
    add_gold(tmp_path, [a_case("dead", "red", kind="dead", split="holdout")])
    assert sorted(case.case_id for case in holdout_cases(tmp_path, "toy")) == sorted(f"holdout-{c}" for c in TOY)


# Registry


def a_manifest(base: Path, version: str, **changes: Any) -> AdapterManifest:
    from schemas.adapters import base_fingerprint

    fields: dict[str, Any] = {
        "task": "toy",
        "version": version,
        "base": "tiny",
        "base_sha256": base_fingerprint(base),
        "files": {},
        "watermark": {0: 4},
        "rows": 4,
        "pairs": 4,
        "settings": {},
        "seed": 0,
        "revision": "",
        "created_ms": 1,
    }
    return AdapterManifest(**(fields | changes))


@pytest.fixture(scope="session")
def run_folder(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_adapter(tmp_path_factory.mktemp("run") / "run", base)
    (folder / "manifest.json").unlink()
    return folder


def a_report(version: str, **changes: Any) -> GateReport:
    fields: dict[str, Any] = {
        "task": "toy",
        "version": version,
        "incumbent": "",
        "decision": "promote",
        "reason": "better",
        "cases": 4,
        "before": 0.0,
        "after": 1.0,
        "gained": 4,
        "lost": 0,
        "p_value": 0.125,
    }
    return GateReport(**(fields | changes))


def test_a_version_is_never_overwritten(tmp_path: Path, base: Path, run_folder: Path) -> None:
    manifest = a_manifest(base, OLD)
    folder = publish(tmp_path, run_folder, manifest)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(AdapterError, match="never overwritten"):
        publish(tmp_path, run_folder, msgspec.structs.replace(manifest, rows=5))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    write_gate(tmp_path, a_report(OLD))
    with pytest.raises(AdapterError, match="never rewritten"):
        write_gate(tmp_path, a_report(OLD, decision="refuse"))
    assert read_gate(tmp_path, "toy", OLD) == a_report(OLD)
    assert verify_adapter(folder).rows == 4
    assert list((tmp_path / "toy/.tmp").iterdir()) == []


def test_leftovers_of_a_killed_publish_are_no_adapter_and_are_removed_later(
    tmp_path: Path, base: Path, run_folder: Path
) -> None:
    import os

    publish(tmp_path, run_folder, a_manifest(base, OLD))
    half = tmp_path / "toy/.tmp/v0002-cccccc-123"
    half.mkdir()
    (half / "adapter_model.safetensors").write_bytes(b"half")
    (tmp_path / "toy/v0003-dddddd").mkdir()  # no manifest: no adapter, but its number is taken
    assert [manifest.version for manifest in list_adapters(tmp_path, "toy")] == [OLD]
    assert next_version(tmp_path, "toy", "eeeeee") == "v0004-eeeeee"
    clear_leftovers(tmp_path, "toy")
    assert half.exists()  # young: its process may be alive
    os.utime(half, (0, 0))
    clear_leftovers(tmp_path, "toy")
    assert not half.exists()


def test_an_adapter_with_nan_weights_is_never_visible(tmp_path: Path, base: Path, run_folder: Path) -> None:
    import shutil

    from safetensors.numpy import load_file, save_file

    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    weights = load_file(run / "adapter_model.safetensors")
    next(iter(weights.values()))[0] = float("nan")
    save_file(weights, run / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="NaN"):
        publish(tmp_path / "registry", run, a_manifest(base, OLD))
    assert list_adapters(tmp_path / "registry", "toy") == []


def test_the_last_promotion_says_who_serves_and_going_back_is_one_more(
    tmp_path: Path, base: Path, run_folder: Path
) -> None:
    assert incumbent(tmp_path, "toy") == ""
    for version in (OLD, NEW):
        publish(tmp_path, run_folder, a_manifest(base, version))
        promote(tmp_path, "toy", version, by="gate")
    promote(tmp_path, "toy", OLD, by="hand", reason="complaints")
    assert incumbent(tmp_path, "toy") == OLD
    promote(tmp_path, "toy", "", by="hand")
    assert [entry.version for entry in promotions(tmp_path, "toy")] == [OLD, NEW, OLD, ""]
    with pytest.raises(AdapterError, match="has no manifest"):
        promote(tmp_path, "toy", "v0009-ffffff", by="hand")


def test_a_second_owner_waits_for_the_lease(tmp_path: Path) -> None:
    stop, order = threading.Event(), []

    def second() -> None:
        with lease(tmp_path / "lease", stop) as held:
            order.append(("second", held is not None))

    with lease(tmp_path / "lease", stop) as held:
        assert held is not None
        with lease(tmp_path / "lease", stop, wait=False) as other:
            assert other is None
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append(("first", True))
    thread.join()
    assert order == [("first", True), ("second", True)]


# Service


def test_the_trigger_counts_corrected_gold_above_the_last_watermark_only(tmp_path: Path) -> None:
    add_gold(tmp_path, [a_case("old", "red", "stop")])
    above = current_watermark(tmp_path)
    fresh = [
        a_case("new", "red", "stop"),
        a_case("passed at once", "red", "stop", corrected=False),
        a_case("held", "red", "stop", split="holdout"),
        a_case("failed", "red", kind="unresolved"),
        a_case("other", "red", "stop", task="other"),
    ]
    add_gold(tmp_path, fresh)
    add_gold(tmp_path, [a_case("elsewhere", "red", "stop")], partition=1)
    upto = current_watermark(tmp_path)
    add_gold(tmp_path, [a_case("later", "red", "stop")])
    assert corrected_rows(tmp_path, "toy", {}, upto) == 3
    assert corrected_rows(tmp_path, "toy", above, upto) == 2


class Service:
    """The trainer's service in a thread; leaving the block stops it."""

    def __init__(self, settings: Settings, **options: Any) -> None:
        self.stop = threading.Event()
        options = {"stop": self.stop, "poll_s": 0.02, "judge": toy_judge} | options
        self.thread = threading.Thread(target=run_trainer, args=(settings,), kwargs=options)

    def __enter__(self) -> Service:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        self.thread.join(20)
        assert not self.thread.is_alive()


def test_the_service_trains_gates_and_promotes_once_for_one_watermark(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    registry = settings.adapters
    caplog.set_level(logging.INFO, "goldstream.trainer")
    with Service(settings):
        toy_gold(settings.gold)
        wait_until(lambda: incumbent(registry, "toy"), 40)
        time.sleep(0.2)
    (manifest,) = list_adapters(registry, "toy")
    assert (manifest.rows, manifest.pairs, manifest.watermark, manifest.base) == (4, 8, {0: 8}, "tiny")
    assert (manifest.settings["rank"], manifest.training["steps"]) == (16, 30)
    assert set(manifest.files) == {"adapter_config.json", "adapter_model.safetensors", "steps.jsonl"}
    report = read_gate(registry, "toy", manifest.version)
    assert report is not None
    assert (report.decision, report.before, report.after) == ("promote", 0.0, 1.0)
    assert incumbent(registry, "toy") == manifest.version
    verify_adapter(registry / "toy" / manifest.version)
    status = read_status(settings, "toy")
    assert status is not None
    assert (status.state, status.step, status.error) == ("idle", 30, "")
    assert "red" not in caplog.text  # no prompt text in logs


def test_a_run_asked_for_ignores_the_trigger_and_manual_promotion_waits(settings: Settings) -> None:
    task = settings.tasks["toy"]
    trainer = msgspec.structs.replace(task.trainer, min_corrected_rows=1000, epochs=1)
    settings = with_task(settings, trainer=trainer, gate=Gate(min_holdout=4, promotion="manual"))
    toy_gold(settings.gold)
    answers: dict[str, dict[str, str]] = {"": dict.fromkeys(TOY, "?")}

    class Perfect(ToyEngine):
        def load_adapter(self, name: str, folder: Path) -> None:
            self.answers[name] = TOY

    def make_engine(settings: Settings, task: str) -> Any:
        return Perfect(answers)

    report = run_trainer(settings, once="toy", stop=threading.Event(), judge=toy_judge, make_engine=make_engine)
    assert report is not None
    assert (report.decision, incumbent(settings.adapters, "toy")) == ("promote", "")


def test_a_second_trainer_waits_for_the_first(settings: Settings) -> None:
    toy_gold(settings.gold)
    with lease(settings.adapters / "toy/lease", threading.Event()), Service(settings):
        time.sleep(0.3)
        assert list_adapters(settings.adapters, "toy") == []
        assert read_status(settings, "toy") is None


def test_a_failed_run_keeps_the_incumbent_and_is_not_repeated_in_a_tight_loop(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings = with_task(settings, trainer=msgspec.structs.replace(settings.tasks["toy"].trainer, max_length=5))
    toy_gold(settings.gold)
    with Service(settings):
        wait_until(lambda: "nothing to train on" in caplog.text)
        time.sleep(0.3)
    assert caplog.text.count("nothing to train on") == 1
    status = read_status(settings, "toy")
    assert status is not None
    assert status.state == "idle"
    assert "too_long" in status.error
    assert list_adapters(settings.adapters, "toy") == []


def test_a_version_published_but_not_gated_is_gated_at_the_next_start(
    settings: Settings, base: Path, run_folder: Path
) -> None:
    toy_gold(settings.gold)
    publish(settings.adapters, run_folder, a_manifest(base, OLD, watermark=current_watermark(settings.gold)))
    engine = ToyEngine({OLD: TOY, "": dict.fromkeys(TOY, "?")})
    with Service(settings, make_engine=lambda settings, task: engine):
        wait_until(lambda: incumbent(settings.adapters, "toy") == OLD)
    assert engine.closed
    assert [manifest.version for manifest in list_adapters(settings.adapters, "toy")] == [OLD]


def test_a_stopped_run_publishes_nothing(settings: Settings) -> None:
    toy_gold(settings.gold)
    stop = threading.Event()
    stop.set()
    assert run_trainer(settings, once="toy", stop=stop, judge=toy_judge) is None
    assert list_adapters(settings.adapters, "toy") == []
    assert not list((settings.state / "trainer/runs/toy").iterdir())


def test_a_student_served_elsewhere_needs_a_base(settings: Settings, base: Path) -> None:
    remote = with_task(settings, student=Model(model="hosted_vllm/Qwen/Qwen3-8B"))
    with pytest.raises(SettingsError, match=r"tasks.toy.trainer.base is missing"):
        run_trainer(remote, stop=threading.Event())
    remote = with_task(remote, trainer=Trainer(base=str(base)))
    assert student_base(remote, "toy") == ("Qwen/Qwen3-8B", base)
    assert student_base(settings, "toy") == ("tiny", base)


def test_the_default_judge_is_the_tasks_own(settings: Settings) -> None:
    from trainer.gate import task_judge

    rubric = Rubric(verifier="test_trainer:no_question_marks", rules=(Rule(id="exact", text="be exact"),))
    judge = task_judge(with_task(settings, rubric=rubric), "toy")

    async def passes(answer: str) -> bool:
        return (await judge([Message("user", "red")], answer)).passed

    assert not asyncio.run(passes("?"))
    assert asyncio.run(passes("stop"))


def no_question_marks(messages: Sequence[Message], answer: str) -> list[Violation]:
    return [Violation("exact", hinge="?")] if "?" in answer else []


# Rollout


class ListRecords:
    """gs.adapters as a list."""

    def __init__(self, *records: AdapterRecord) -> None:
        self.records = list(records)

    def read(self) -> list[AdapterRecord]:
        return list(self.records)

    def append(self, record: AdapterRecord) -> None:
        self.records.append(record)


class Rollout(Service):
    """Rollout in a thread."""

    def __init__(self, settings: Settings, records: ListRecords) -> None:
        self.stop = threading.Event()
        options = {"stop": self.stop, "records": records, "poll_s": 0.02}
        self.thread = threading.Thread(target=run_rollout, args=(settings,), kwargs=options)


class FakeVllm:
    """The four calls of a vLLM server; `calls` tells what was asked, `broken` names adapters that answer 500."""

    def __init__(self) -> None:
        self.loaded: dict[str, str] = {}
        self.calls: list[tuple[str, str]] = []
        self.broken: set[str] = set()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(200, {"data": [{"id": name} for name in ["tiny", *fake.loaded]]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                name = body.get("lora_name") or body["model"]
                fake.calls.append((self.path.rsplit("/", 1)[1], name))
                if self.path == "/v1/load_lora_adapter":
                    fake.loaded[name] = body["lora_path"]
                elif self.path == "/v1/unload_lora_adapter":
                    del fake.loaded[name]
                elif name in fake.broken or name not in fake.loaded:
                    return self.answer(500, {"error": "engine failure"})
                else:
                    completion = {"message": {"content": "OK."}}
                    return self.answer(200, {"choices": [completion], "usage": {"completion_tokens": 2}})
                self.answer(200, "Success")

            def answer(self, status: int, body: Any) -> None:
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}).start()


@pytest.fixture
def vllm() -> Iterator[FakeVllm]:
    fake = FakeVllm()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


def publish_and_promote(settings: Settings, base: Path, run_folder: Path, version: str) -> None:
    publish(settings.adapters, run_folder, a_manifest(base, version))
    promote(settings.adapters, "toy", version, by="gate", reason="better")


def test_rollout_records_what_was_promoted_and_what_was_taken_back(
    settings: Settings, base: Path, run_folder: Path
) -> None:
    records = ListRecords()
    with Rollout(settings, records):
        publish_and_promote(settings, base, run_folder, OLD)
        wait_until(lambda: len(records.records) == 1)
        promote(settings.adapters, "toy", "", by="hand", reason="complaints")
        wait_until(lambda: len(records.records) == 2)
        time.sleep(0.1)
    first, second = records.records
    assert (first.version, first.previous, first.reason, first.served_as) == (OLD, "", "gate: better", "")
    assert (second.version, second.previous, second.reason) == ("", OLD, "hand: complaints")
    assert [(r.lease_epoch, r.sequence) for r in records.records] == [(1, 1), (1, 2)]


def test_each_rollout_has_a_higher_epoch_even_where_its_lease_file_was_lost(
    settings: Settings, base: Path, run_folder: Path
) -> None:
    publish_and_promote(settings, base, run_folder, OLD)
    records = ListRecords(AdapterRecord(task="other", version="", lease_epoch=7, sequence=3, at_ms=1))
    with Rollout(settings, records):
        wait_until(lambda: len(records.records) == 2)
    assert records.records[-1].lease_epoch == 8
    with Rollout(settings, records):  # nothing to switch: it only takes the lease
        wait_until(lambda: int((settings.adapters / "rollout.lease").read_text()) == 9)
        promote(settings.adapters, "toy", "", by="hand")
        wait_until(lambda: len(records.records) == 3)
    assert latest_records(records.records)["toy"].lease_epoch == 9


def test_vllm_loads_answers_and_only_then_is_recorded_and_the_one_before_last_is_unloaded(
    settings: Settings, base: Path, run_folder: Path, vllm: FakeVllm
) -> None:
    student = Model(model="hosted_vllm/tiny", api_base=vllm.url)
    settings = with_task(settings, student=student, trainer=Trainer(base=str(base)))
    records = ListRecords()
    versions = [OLD, NEW, "v0003-cccccc"]
    names = [served_name("toy", version) for version in versions]
    with Rollout(settings, records):
        for count, version in enumerate(versions, 1):
            publish_and_promote(settings, base, run_folder, version)
            wait_until(lambda count=count: len(records.records) == count)  # type: ignore[misc]
        wait_until(lambda: len(vllm.loaded) == 2)
    assert vllm.calls == [
        *((call, name) for name in names for call in ("load_lora_adapter", "completions")),
        ("unload_lora_adapter", names[0]),
    ]
    assert vllm.loaded[names[1]] == str((settings.adapters / "toy" / NEW).resolve())
    assert [record.served_as for record in records.records] == names


def test_a_failed_smoke_test_or_a_changed_adapter_switches_nothing_and_is_tried_again(
    settings: Settings, base: Path, run_folder: Path, vllm: FakeVllm, caplog: pytest.LogCaptureFixture
) -> None:
    student = Model(model="hosted_vllm/tiny", api_base=vllm.url)
    settings = with_task(settings, student=student, trainer=Trainer(base=str(base)))
    records = ListRecords()
    vllm.broken.add(served_name("toy", OLD))
    with Rollout(settings, records):
        publish_and_promote(settings, base, run_folder, OLD)
        wait_until(lambda: "answered 500" in caplog.text)
        assert records.records == []
        vllm.broken.clear()
        wait_until(lambda: len(records.records) == 1)
        publish(settings.adapters, run_folder, a_manifest(base, NEW))
        promote(settings.adapters, "toy", NEW, by="gate")
        (settings.adapters / "toy" / NEW / "adapter_config.json").write_text("{}")
        wait_until(lambda: "changed after it was written" in caplog.text or len(records.records) == 2)
    assert vllm.calls.count(("load_lora_adapter", served_name("toy", OLD))) == 1  # loaded once, asked twice


def test_a_model_server_that_restarted_gets_its_adapter_again(
    settings: Settings, base: Path, run_folder: Path, vllm: FakeVllm
) -> None:
    student = Model(model="hosted_vllm/tiny", api_base=vllm.url)
    settings = with_task(settings, student=student, trainer=Trainer(base=str(base)))
    publish_and_promote(settings, base, run_folder, OLD)
    name = served_name("toy", OLD)
    record = AdapterRecord(task="toy", version=OLD, lease_epoch=1, sequence=1, at_ms=1, served_as=name)
    records = ListRecords(record)
    with Rollout(settings, records):
        wait_until(lambda: name in vllm.loaded)
    assert records.records == [record]


def test_rollout_ends_where_a_newer_one_writes(settings: Settings, base: Path, run_folder: Path) -> None:
    from trainer.rollout import NewerRollout

    class Overtaken(ListRecords):
        def read(self) -> list[AdapterRecord]:
            found = super().read()
            self.records = [AdapterRecord(task="toy", version=NEW, lease_epoch=99, sequence=1, at_ms=1)]
            return found

    publish_and_promote(settings, base, run_folder, OLD)
    with pytest.raises(NewerRollout, match="lease epoch 99"):
        run_rollout(settings, stop=threading.Event(), records=Overtaken(), poll_s=0.01)


def test_manifests_survive_the_trip_through_json(tmp_path: Path, base: Path, run_folder: Path) -> None:
    folder = publish(tmp_path, run_folder, a_manifest(base, OLD, watermark={0: 3, 11: 5}))
    assert read_manifest(folder).watermark == {0: 3, 11: 5}
