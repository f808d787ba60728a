"""Claims about the trainer: loop and rollout.

Everything real but Kafka (a list) and vLLM (a stub server).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tiny import make_tiny_model
from toys import NEW, OLD, STRATEGY, TOY, Service, a_case, a_manifest, wait_until, with_task

from schemas.adapters import AdapterRecord, read_manifest, served_name
from schemas.case import Case, Message
from schemas.errors import TrainingError
from schemas.outcomes import outcome_row, outcome_table
from schemas.settings import Model, Settings, Trainer
from trainer.dataset import Dataset, build_examples
from trainer.registry import next_version, promote, publish
from trainer.rollout import latest_records, run_rollout


def examples_of(
    tokenizer: Any, cases: Sequence[Case], recipe: Any = "rgt", weight: float = 1.0, limit: int = 512
) -> Dataset:
    table = outcome_table([outcome_row(case, 0, offset) for offset, case in enumerate(cases)])
    return build_examples(table, tokenizer, recipe=recipe, strategy_weight=weight, max_length=limit)


# Loop


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
    examples = examples_of(tokenizer, [a_case("1", "red", "stop")], recipe="isft").examples
    with pytest.raises(TrainingError, match=r"loss became nan at step 1 of 3.*learning_rate"):
        train_lora(broken, examples, Trainer(rank=4, threads=1), tmp_path / "out")
    assert not (tmp_path / "out/adapter_model.safetensors").exists()


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
