"""Claims about what stays loaded between runs: it makes them faster, and changes nothing of what they train on."""

from __future__ import annotations

import errno
import io
import json
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from toys import STRATEGY, TOY, Service, ToyEngine, a_case, add_gold, toy_gold, toy_judge, with_task
from waiting import wait_until

from schemas.case import Case, Strategy
from schemas.errors import TrainingError
from schemas.forgotten import Forgetting
from schemas.gold import current_watermark
from schemas.outcomes import outcome_row, outcome_table
from schemas.settings import Settings, Trainer
from streams.forgetting.rows import remember
from trainer.ahead import Ahead
from trainer.dataset import Dataset, build_examples, train_rows, training_data
from trainer.pairs import ENTRY_BYTES, PairMemory
from trainer.registry import list_adapters
from trainer.resident import Resident
from trainer.service import run_trainer

QUICK = Trainer(rank=4, epochs=1, batch_size=2, threads=1, learning_rate=1e-2)
OTHER = Strategy("stopped at green", "go where it is green")


def gold_cases(count: int = 4) -> list[Case]:
    """Returns cases of all kinds of rows: with strategy and without, some that are left out."""
    colors = list(TOY)
    cases = [a_case(f"c{n}", colors[n % 4], TOY[colors[n % 4]], strategy=STRATEGY) for n in range(count)]
    return [*cases, a_case("plain", "red", "halt", corrected=False), a_case("control", "red", "stop<|im_end|>")]


def rows_of(cases: Sequence[Case]) -> Any:
    return outcome_table([outcome_row(case, 0, offset) for offset, case in enumerate(cases)])


def built(rows: Any, tokenizer: Any, known: PairMemory | None = None, **changes: Any) -> Dataset:
    settings = {"recipe": "rgt", "strategy_weight": 0.25, "max_length": 512} | changes
    return build_examples(rows, tokenizer, known=known, **settings)


# Pairs


def test_pairs_tokenised_before_are_bit_for_bit_those_tokenised_now(tokenizer: Any) -> None:
    rows, memory = rows_of(gold_cases()), PairMemory(tokenizer, 1 << 20)
    now = built(rows, tokenizer)
    first, second = built(rows, tokenizer, memory), built(rows, tokenizer, memory)
    assert first == second == now
    assert now.skipped == {"control_text": 1}
    # Four questions with two pairs each, one row as A alone, one that is left out.
    assert memory.made == len(memory) == 4 * 2 + 1 + 1


@pytest.mark.parametrize(
    "changes",
    [{"strategy_weight": 2.0}, {"pair_weights": (0.5, 3.0)}, {"max_length": 40}, {"context": 45}, {"recipe": "isft"}],
)
def test_weights_limits_and_recipes_are_applied_to_what_is_remembered(tokenizer: Any, changes: dict[str, Any]) -> None:
    rows, memory = rows_of(gold_cases()), PairMemory(tokenizer, 1 << 20)
    before = built(rows, tokenizer, memory)
    made = memory.made
    after = built(rows, tokenizer, memory, **changes)
    assert after == built(rows, tokenizer, **changes) != before
    assert memory.made == made


@pytest.mark.parametrize(
    "change",
    [
        {"answer": "wait"},
        {"strategy": OTHER},
        {"question": "amber"},
    ],
)
def test_a_row_written_anew_is_tokenised_anew_and_the_old_one_goes(tokenizer: Any, change: dict[str, Any]) -> None:
    memory = PairMemory(tokenizer, 1 << 20)
    one = {"question": "red", "answer": "stop", "strategy": STRATEGY}
    built(rows_of([a_case("c", **one)]), tokenizer, memory)
    rows = rows_of([a_case("c", **(one | change))])  # type: ignore[arg-type]
    memory.begin()
    assert built(rows, tokenizer, memory) == built(rows, tokenizer)
    memory.sweep()
    assert len(memory) == 2


def test_what_the_memory_has_no_room_for_is_made_each_time_and_is_the_same(tokenizer: Any) -> None:
    rows = rows_of(gold_cases(12))
    memory = PairMemory(tokenizer, 3 * ENTRY_BYTES + 500)
    assert built(rows, tokenizer, memory) == built(rows, tokenizer, memory) == built(rows, tokenizer)
    assert 0 < memory.size <= memory.limit
    assert memory.size == sum(entry.size for entry in memory._entries.values())
    assert 0 < len(memory) <= 3


def test_a_template_without_thinking_is_told_as_without_a_memory(tokenizer: Any) -> None:
    import copy

    plain = copy.deepcopy(tokenizer)
    plain.chat_template = "{{ messages[-1].content }}"
    with pytest.raises(TrainingError, match="enable_thinking"):
        built(rows_of(gold_cases()), plain, PairMemory(plain, 1 << 20))


# Tokenizer


def test_another_chat_template_or_tokenizer_on_disk_begins_a_new_memory(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    rows, resident = rows_of(gold_cases()), Resident(folder, 16)
    first = resident.pairs(tmp_path)
    before = built(rows, first.tokenizer, first)
    assert resident.pairs(tmp_path) is first
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>", "<|im_start|> "))
    second = resident.pairs(tmp_path)
    assert second is not first
    assert built(rows, second.tokenizer, second) == built(rows, second.tokenizer) != before
    words = json.loads((folder / "tokenizer_config.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(words | {"eos_token": "<|endoftext|>"}))
    third = resident.pairs(tmp_path)
    assert built(rows, third.tokenizer, third).examples[0].input_ids[-1] == third.tokenizer.eos_token_id
    assert third.tokenizer.eos_token_id != second.tokenizer.eos_token_id


def test_nothing_is_remembered_of_a_template_that_asks_the_clock(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{%- if false -%}{{ strftime_now('%d') }}{%- endif -%}")
    memory = Resident(folder, 16).pairs(tmp_path)
    built(rows_of(gold_cases()), memory.tokenizer, memory)
    assert len(memory) == 0


# Base


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def test_an_adapter_of_a_base_that_stayed_loaded_is_bit_for_bit_that_of_one_just_read(
    base: Path, tokenizer: Any, tmp_path: Path
) -> None:
    from trainer.loop import train_lora

    examples, resident = built(rows_of(gold_cases()), tokenizer).examples, Resident(base, 64)
    train_lora(base, examples, QUICK, tmp_path / "fresh")
    for name in ("first", "second"):
        train_lora(base, examples, QUICK, tmp_path / name, resident=resident)
        assert weights(tmp_path / name) == weights(tmp_path / "fresh")
    assert resident.loads == 1
    other = msgspec.structs.replace(QUICK, rank=8, target_modules=("q_proj",))
    train_lora(base, examples, other, tmp_path / "other", resident=resident)
    train_lora(base, examples, other, tmp_path / "other-fresh")
    assert weights(tmp_path / "other") == weights(tmp_path / "other-fresh")
    train_lora(base, examples, QUICK, tmp_path / "again", resident=resident)
    assert weights(tmp_path / "again") == weights(tmp_path / "fresh")
    assert resident.loads == 1


def test_a_base_is_read_anew_where_it_or_its_number_format_changed_or_a_run_failed(
    base: Path, tokenizer: Any, tmp_path: Path
) -> None:
    from trainer.loop import train_lora

    folder = shutil.copytree(base, tmp_path / "base")
    examples, resident = built(rows_of(gold_cases()), tokenizer).examples, Resident(folder, 64)

    def loads_of(settings: Trainer, **options: Any) -> int:
        before = resident.loads
        train_lora(folder, examples, settings, tmp_path / str(before), resident=resident, **options)
        return resident.loads - before

    assert [loads_of(QUICK), loads_of(QUICK)] == [1, 0]
    assert loads_of(msgspec.structs.replace(QUICK, dtype="bf16")) == 1
    (folder / "model.safetensors").touch()
    assert [loads_of(QUICK), loads_of(QUICK)] == [1, 0]

    def fail(*told: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loads_of(QUICK, progress=fail, resume=False)
    assert not resident.has_model
    assert loads_of(QUICK) == 1


def test_a_base_is_read_where_the_log_cannot_be_written(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers.utils.logging import enable_progress_bar

    from trainer.forward import read_base

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    enable_progress_bar()  # as in a process that has just started
    monkeypatch.setattr("sys.stderr", Full())
    assert read_base(base, QUICK, torch.device("cpu")).num_parameters() > 0


def test_a_base_beyond_the_limit_is_not_kept(base: Path, tokenizer: Any, tmp_path: Path) -> None:
    from trainer.loop import train_lora

    examples, resident = built(rows_of(gold_cases()), tokenizer).examples, Resident(base, 1)
    train_lora(base, examples, QUICK, tmp_path / "out", resident=resident)
    assert not resident.has_model


# Ahead


def quick(settings: Settings, **changes: Any) -> Settings:
    trainer = {"epochs": 1, "rank": 4} | changes
    return with_task(settings, trainer=msgspec.structs.replace(settings.tasks["toy"].trainer, **trainer))


def prepared(settings: Settings, ahead: Ahead) -> PairMemory:
    ahead.want(current_watermark(settings.gold))
    while ahead.busy:
        ahead.go_on(60)
    return ahead.resident.pairs(settings.gold)


def trained(settings: Settings, memory: PairMemory) -> Dataset:
    """Builds what a run would train on now."""
    memory.begin()
    rows = train_rows(settings.gold, "toy", current_watermark(settings.gold))
    data = training_data(rows, memory.tokenizer, settings.tasks["toy"].trainer, known=memory)
    memory.sweep()
    assert data == training_data(rows, memory.tokenizer, settings.tasks["toy"].trainer)
    return data


def test_rows_are_tokenised_as_they_land_and_the_run_finds_them(settings: Settings, base: Path) -> None:
    ahead = Ahead(settings, "toy", Resident(base, 64))
    toy_gold(settings.gold)
    memory = prepared(settings, ahead)
    assert (memory.made, ahead.resident.has_model) == (8, True)
    add_gold(settings.gold, [a_case("later", "red", "wait", strategy=STRATEGY)])
    prepared(settings, ahead)
    assert memory.made == 10  # only the new row
    assert len(trained(settings, memory).examples) == 10
    assert memory.made == 10


def test_a_row_rewritten_or_forgotten_after_it_was_tokenised_is_not_trained(settings: Settings, base: Path) -> None:
    ahead = Ahead(settings, "toy", Resident(base, 64))
    cases = [a_case(name, "red", "stop", strategy=STRATEGY) for name in ("stays", "rewritten", "goes")]
    cases = [msgspec.structs.replace(case, user=case.case_id, created_ms=5) for case in cases]
    cases = [*cases, a_case("taken-back", "amber", "wait", strategy=STRATEGY)]
    add_gold(settings.gold, cases)
    memory = prepared(settings, ahead)
    edited = msgspec.structs.replace(a_case("rewritten", "red", "halt", strategy=STRATEGY), epoch=1)
    ended = msgspec.structs.replace(a_case("taken-back", "amber", kind="unresolved"), epoch=1)
    add_gold(settings.gold, [edited, ended])
    remember(settings.gold, [Forgetting(kind="user", key="goes", at_ms=10)], "key")
    data = trained(settings, ahead.resident.pairs(settings.gold))
    assert {example.case_id for example in data.examples} == {"stays", "rewritten"}
    answers = {e.case_id: memory.tokenizer.decode(e.input_ids) for e in data.examples if e.branch == "A"}
    assert "halt" in answers["rewritten"]
    assert "stop" in answers["stays"]


def test_the_tokens_of_a_forgotten_row_do_not_wait_for_the_next_run_to_go(settings: Settings, base: Path) -> None:
    resident = Resident(base, 64)
    ahead = Ahead(settings, "toy", resident)
    add_gold(settings.gold, [msgspec.structs.replace(a_case("c", "red", "stop"), user="u", created_ms=5)])
    memory = prepared(settings, ahead)
    resident.forget(settings.gold)
    assert len(memory) == 1
    remember(settings.gold, [Forgetting(kind="user", key="u", at_ms=10)], "key")
    resident.forget(settings.gold)
    assert len(memory) == 0


def test_what_cannot_be_prepared_is_left_to_the_run(settings: Settings, base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "broken")
    (folder / "tokenizer.json").write_text("{")
    ahead = Ahead(settings, "toy", Resident(folder, 64))
    toy_gold(settings.gold)
    ahead.want(current_watermark(settings.gold))
    ahead.go_on(60)
    assert not ahead.busy


class Passing(ToyEngine):
    """Knows every answer, under any version."""

    def __init__(self) -> None:
        super().__init__({"": dict.fromkeys(TOY, "?")})

    def load_adapter(self, name: str, folder: Path) -> None:
        self.answers[name] = TOY


def noted(monkeypatch: pytest.MonkeyPatch) -> list[Resident]:
    """Returns a list of what stays loaded in each service that starts from now on."""
    kept: list[Resident] = []
    made = Resident.__init__

    def noting(self: Resident, *arguments: Any) -> None:
        made(self, *arguments)
        kept.append(self)

    monkeypatch.setattr(Resident, "__init__", noting)
    return kept


def test_a_run_of_the_service_leaves_base_and_pairs_for_the_next_and_resident_mb_0_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = noted(monkeypatch)
    toy_gold(settings.gold)
    for limit in (64, 0):
        stop, chosen = threading.Event(), quick(settings, resident_mb=limit)
        run_trainer(chosen, once="toy", stop=stop, judge=toy_judge, make_engine=lambda settings, task: Passing())
    assert [(resident.has_model, len(resident.pairs(settings.gold))) for resident in kept] == [(True, 8), (False, 0)]
    first, second = list_adapters(settings.adapters, "toy")
    assert first.files["adapter_model.safetensors"] == second.files["adapter_model.safetensors"]


def test_the_service_prepares_while_gold_waits_for_its_threshold_and_not_where_nothing_is_new(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = noted(monkeypatch)
    gold = settings.gold
    waiting = [msgspec.structs.replace(a_case(f"c{n}", "red", TOY[c]), user="u") for n, c in enumerate(TOY)]
    with Service(quick(settings), make_engine=lambda settings, task: Passing()):
        add_gold(gold, waiting[:3])
        wait_until(lambda: kept and kept[0].has_model, 60)
        memory = kept[0].pairs(gold)
        assert (memory.made, len(memory), list_adapters(settings.adapters, "toy")) == (3, 3, [])
        remember(gold, [Forgetting(kind="user", key="u", at_ms=10)], "key")
        wait_until(lambda: len(memory) == 0)  # also where no gold comes
        add_gold(gold, [a_case(name, "red", answer, strategy=STRATEGY) for name, answer in TOY.items()])
        wait_until(lambda: list_adapters(settings.adapters, "toy"), 60)
    (manifest,) = list_adapters(settings.adapters, "toy")
    assert manifest.rows == 4
    with Service(quick(settings)):
        time.sleep(0.3)
    assert (kept[1]._pairs, kept[1].has_model) == (None, False)


def test_gold_starts_a_run_however_rarely_the_service_looks(settings: Settings) -> None:
    with Service(quick(settings), poll_s=3600.0, make_engine=lambda settings, task: Passing()):
        wait_until(lambda: (settings.adapters / "toy/lease").exists())
        add_gold(settings.gold, [a_case(f"c{n}", "red", "stop", strategy=STRATEGY) for n in range(3)])
        add_gold(settings.gold, [a_case("last", "green", "go", strategy=STRATEGY)])
        wait_until(lambda: list_adapters(settings.adapters, "toy"), 40)
    (manifest,) = list_adapters(settings.adapters, "toy")
    assert manifest.watermark == {0: 4}
