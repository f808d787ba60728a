"""Claims about the in-process student: batches, adapters, refusals, seeds."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import make_tiny_adapter, make_tiny_model, write_manifest

from agents.local import Generation, LocalEngine
from schemas.case import Message
from schemas.errors import AdapterError, ModelRefused, ModelUnavailable

_TEXT = "metformin denies chest pain since last May and lists each item once as first mentioned"
PROMPTS = [[Message("user", f"{_TEXT[: n % 15 * 6 + 4]} {n}")] for n in range(24)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("engine") / "base")


@pytest.fixture(scope="module")
def adapters(base: Path) -> dict[str, Path]:
    names = ("v0001-abcdef12", "v0002-abcdef13")
    return {v: make_tiny_adapter(base.parent / v, base, v, seed=seed) for seed, v in enumerate(names, 1)}


@pytest.fixture(scope="module")
def engine(base: Path) -> Iterator[LocalEngine]:
    engine = LocalEngine(base, max_batch=8, threads=1)
    yield engine
    engine.close()


def same(one: Generation, other: Generation) -> bool:
    return one.text == other.text and one.logprob == pytest.approx(other.logprob, abs=1e-2)


def test_greedy_answers_are_the_same_alone_and_in_a_batch(engine: LocalEngine) -> None:
    limits = [8 + 5 * (n % 7) for n in range(len(PROMPTS))]  # rows end at different steps, so the batch shrinks

    async def together() -> list[Generation]:
        return await asyncio.gather(*(engine.generate(p, max_tokens=n) for p, n in zip(PROMPTS, limits, strict=True)))

    alone = [engine.generate_batch([p], max_tokens=n)[0] for p, n in zip(PROMPTS, limits, strict=True)]
    assert len({a.text for a in alone}) > 12
    assert all(map(same, alone, asyncio.run(together())))
    longest = engine.generate_batch(PROMPTS, max_tokens=max(limits))
    assert all(map(same, alone[6::7], longest[6::7]))


def test_answer_ends_at_the_end_of_turn_token(engine: LocalEngine) -> None:
    answers = engine.generate_batch(PROMPTS, temperature=1.5, max_tokens=300, seed=1)
    assert any(a.completion_tokens < 300 for a in answers)
    assert not any("<|im_end|>" in a.text for a in answers)


def test_logprob_is_that_of_the_plain_model_with_unmerged_peft(
    engine: LocalEngine, base: Path, adapters: dict[str, Path]
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from schemas.chat import render_prompt

    (version, folder), *_ = adapters.items()
    engine.load_adapter(version, folder)
    got = engine.generate_batch([PROMPTS[5]], adapter=version, max_tokens=8)[0]
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, str(folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = tokenizer(render_prompt(tokenizer, PROMPTS[5]), add_special_tokens=False, return_tensors="pt")["input_ids"]
    expected = 0.0
    with torch.inference_mode():
        for _ in range(got.completion_tokens):
            logprobs = model(input_ids=ids).logits[0, -1].log_softmax(-1)
            expected += float(logprobs.max())
            ids = torch.cat([ids, logprobs.argmax().view(1, 1)], 1)
    assert got.logprob == pytest.approx(expected, abs=1e-2)


def test_two_adapters_switch_within_one_engine_and_leave_the_base_as_it_was(
    engine: LocalEngine, adapters: dict[str, Path]
) -> None:
    before = engine.generate_batch(PROMPTS[:4], max_tokens=16)

    async def mixed() -> list[list[Generation]]:
        calls = [asyncio.gather(*(engine.generate(p, max_tokens=16) for p in PROMPTS[:4]))]
        for version, folder in adapters.items():
            await asyncio.to_thread(engine.load_adapter, version, folder)
            engine.load_adapter(version, folder)  # again: nothing happens
            calls.append(asyncio.gather(*(engine.generate(p, adapter=version, max_tokens=16) for p in PROMPTS[:4])))
        return [list(answers) for answers in await asyncio.gather(*calls)]

    base_answers, first, second = asyncio.run(mixed())
    assert engine.adapters() == sorted(adapters)
    assert all(map(same, before, base_answers))
    assert not any(map(same, before, first))
    assert not any(map(same, first, second))
    assert all(map(same, before, engine.generate_batch(PROMPTS[:4], max_tokens=16)))
    engine.unload_adapter("v0002-abcdef13")
    with pytest.raises(AdapterError, match="not loaded"):
        engine.generate_batch(PROMPTS[:1], adapter="v0002-abcdef13")


def test_bad_adapter_is_refused_and_the_base_keeps_serving(
    engine: LocalEngine, base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    good = adapters["v0001-abcdef12"]
    changed = Path(shutil.copytree(good, tmp_path / "changed"))
    weights = bytearray((changed / "adapter_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "adapter_model.safetensors").write_bytes(weights)
    unfit = Path(shutil.copytree(good, tmp_path / "unfit"))
    config = (unfit / "adapter_config.json").read_text().replace('"r": 8', '"r": 4')
    (unfit / "adapter_config.json").write_text(config)
    write_manifest(unfit, base, "v0003-abcdef14")
    other = make_tiny_model(tmp_path / "other", seed=9)
    stranger = Path(shutil.copytree(good, tmp_path / "stranger"))
    write_manifest(stranger, other, "v0004-abcdef15")
    refused = {changed: "SHA-256", unfit: "does not fit", stranger: "another base", tmp_path: "manifest"}
    for folder, text in refused.items():
        with pytest.raises(AdapterError, match=text):
            engine.load_adapter("bad", folder)
    assert "bad" not in engine.adapters()
    assert engine.generate_batch(PROMPTS[:1], max_tokens=4)[0].completion_tokens > 0


def test_prompt_beyond_the_context_is_refused_and_a_long_answer_is_cut_at_it(engine: LocalEngine) -> None:
    with pytest.raises(ModelRefused, match="context of 512"):
        asyncio.run(engine.generate([Message("user", "x" * 600)]))
    near = engine.generate_batch([[Message("user", "x" * 470)]], max_tokens=4000)[0]
    assert near.prompt_tokens + near.completion_tokens <= 512


def test_seeded_sampling_repeats_whatever_else_is_in_the_batch(engine: LocalEngine) -> None:
    one = engine.generate_batch(PROMPTS[:6], temperature=1.0, max_tokens=16, seed=7)
    assert all(map(same, one, engine.generate_batch(PROMPTS[:6], temperature=1.0, max_tokens=16, seed=7)))
    assert not all(map(same, one, engine.generate_batch(PROMPTS[:6], temperature=1.0, max_tokens=16, seed=8)))
    assert not all(map(same, one, engine.generate_batch(PROMPTS[:6], temperature=1.0, max_tokens=16)))

    async def crowded() -> Generation:
        greedy = [asyncio.create_task(engine.generate(p, max_tokens=16)) for p in PROMPTS]
        seeded = await engine.generate(PROMPTS[2], temperature=1.0, max_tokens=16, seed=9)
        await asyncio.gather(*greedy)
        return seeded

    assert same(one[2], asyncio.run(crowded()))


def test_cancelled_call_leaves_the_queue_and_others_are_answered(engine: LocalEngine) -> None:
    async def run() -> int:
        tasks = [asyncio.create_task(engine.generate(p, max_tokens=40)) for p in PROMPTS]
        await asyncio.sleep(0.01)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(r, asyncio.CancelledError) for r in results[::2])
        return sum(isinstance(r, Generation) for r in results[1::2])

    assert asyncio.run(run()) == len(PROMPTS) // 2


def test_error_in_a_batch_reaches_its_callers_and_the_thread_lives_on(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(batch: object) -> None:
        raise MemoryError("toy")

    async def both() -> list[object]:
        return await asyncio.gather(*(engine.generate(p) for p in PROMPTS[:2]), return_exceptions=True)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_decode", broken)
        assert all(isinstance(r, ModelUnavailable) for r in asyncio.run(both()))
    assert asyncio.run(engine.generate(PROMPTS[0], max_tokens=3)).completion_tokens > 0


def test_closed_engine_answers_with_an_error(base: Path) -> None:
    engine = LocalEngine(base)
    engine.close()
    with pytest.raises(ModelUnavailable, match="closed"):
        asyncio.run(engine.generate(PROMPTS[0]))
