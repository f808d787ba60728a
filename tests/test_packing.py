"""Claims about rows that share prompts: who sees whom, and that loss and gradients are those of separate forwards."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trainer.attention import ATTENTION, Segment, branch_attention, layout_on, shares_prompts, visible
from trainer.dataset import Example
from trainer.forward import base_logprobs, merged_weights, packing_of, trained_logprobs
from trainer.packing import group_by_case, pack_rows, shared_prefix


def an_example(case_id: str, branch: Literal["A", "B"], prompt: Sequence[int], *trained: tuple[int, float]) -> Example:
    ids = (*prompt, *(token for token, _ in trained))
    return Example(case_id, branch, ids, (*[0.0] * len(prompt), *(weight for _, weight in trained)), len(prompt))


def some_examples() -> list[Example]:
    """Pairs as RGT makes them: A's prompt goes on where B's ends; one case has no B, another answers alike in both."""
    return [
        an_example("1", "A", [5, 6, 7, 8, 9, 20, 21], (30, 1.0), (31, 1.0), (32, 1.0), (2, 1.0)),
        an_example("1", "B", [5, 6, 7, 8, 9], (20, 0.5), (40, 0.5), (41, 0.5), (21, 0.5), (30, 1.0), (2, 1.0)),
        an_example("2", "A", [5, 6, 11], (33, 1.0), (2, 1.0)),
        an_example("3", "A", [12, 13, 14], (34, 1.0), (35, 1.0), (2, 1.0)),
        an_example("3", "B", [12, 13, 14], (34, 2.0), (35, 2.0), (36, 2.0), (2, 2.0)),
        an_example("4", "A", range(3, 20), (50, 1.0), (2, 1.0)),
    ]


def a_model(family: str, seed: int = 0) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(Qwen3Config(**sizes)) if family == "qwen3" else LlamaForCausalLM(LlamaConfig(**sizes))
    for module in model.modules():  # transformers computes its norms in fp32, whatever the model's precision
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = functools.partial(_norm, module)
    return model.double()


def _norm(module: Any, hidden: Tensor) -> Tensor:
    return functional.rms_norm(hidden, (hidden.shape[-1],), module.weight, module.variance_epsilon)


def alone(model: Any, example: Example) -> tuple[Tensor, Tensor]:
    """Returns log-probabilities and weights of one sequence, by the model's own attention."""
    logits = model(torch.tensor([example.input_ids]), use_cache=False).logits[0, :-1]
    weights = torch.tensor(example.weights[1:], dtype=torch.float64)
    targets = torch.tensor(example.input_ids[1:])
    logprobs = -functional.cross_entropy(logits, targets, reduction="none")
    return logprobs[weights > 0], weights[weights > 0]


def gradients(model: Any) -> list[Tensor]:
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize(
    ("limit", "multiple", "share"), [(1000, 1, True), (1000, 16, True), (30, 1, True), (1, 8, True), (1000, 1, False)]
)
def test_loss_and_gradients_are_those_of_separate_forwards(family: str, limit: int, multiple: int, share: bool) -> None:
    model = a_model(family)
    examples = some_examples()
    loss = torch.zeros((), dtype=torch.float64)
    expected = {}
    for example in examples:
        logprobs, weights = alone(model, example)
        loss = loss - (logprobs * weights).sum()
        expected[example.case_id, example.branch] = logprobs.detach()
    loss.backward()
    expected_gradients = gradients(model)

    model.set_attn_implementation(ATTENTION)
    rows = pack_rows(group_by_case(examples), limit, share=share, multiple=multiple)
    packed_loss = 0.0
    for row in rows:
        assert len(row.tokens_T) % multiple == 0
        logprobs_N = trained_logprobs(model, row)
        row_loss = -(logprobs_N * row.weights_N).sum()
        row_loss.backward()  # type: ignore[no-untyped-call]
        packed_loss += row_loss.item()
        for number, example in enumerate(row.examples):
            found = logprobs_N[row.sequence_N == number]
            assert torch.allclose(found, expected.pop((example.case_id, example.branch)), rtol=0, atol=1e-12)
    assert not expected
    assert packed_loss == pytest.approx(loss.item(), rel=1e-13)
    for packed, separate in zip(gradients(model), expected_gradients, strict=True):
        assert torch.allclose(packed, separate, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_flex_attention_with_its_block_mask_is_the_same_as_branch_by_branch(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trainer.forward

    gpu = torch.cuda.is_available()  # on a CPU FlexAttention has no backward pass
    model = a_model(family)
    model = model.float().cuda() if gpu else model
    model.set_attn_implementation(ATTENTION)
    (row,) = pack_rows(group_by_case(some_examples()), 1000, multiple=128)
    results: list[tuple[Tensor, list[Tensor]]] = []
    with torch.set_grad_enabled(gpu):
        for flex in (False, True):
            monkeypatch.setattr(trainer.forward, "layout_on", functools.partial(layout_on, flex=flex))
            logprobs_N = trained_logprobs(model, row)
            if gpu:
                logprobs_N.sum().backward()  # type: ignore[no-untyped-call]
            results.append((logprobs_N.detach(), gradients(model)))
    (logprobs, grads), (flex_logprobs, flex_grads) = results
    atol = 1e-4 if gpu else 1e-12
    assert torch.allclose(logprobs, flex_logprobs, rtol=0, atol=atol)
    for one, other in zip(grads, flex_grads, strict=True):
        assert torch.allclose(one, other, rtol=1e-2, atol=atol)


def test_a_token_sees_its_prompt_and_its_own_branch_up_to_itself_and_nothing_else() -> None:
    segments = (Segment(0, 3, (2, 1)), Segment(6, 2, (0, 3)))
    length = 13  # two of padding
    case_T, branch_T = visible(segments, length)
    assert case_T.tolist() == [0] * 6 + [1] * 5 + [-1] * 2
    assert branch_T.tolist() == [0, 0, 0, 1, 1, 2, 0, 0, 2, 2, 2, 0, 0]

    # What each output depends on, found by changing one key at a time.
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 1, length, 8, dtype=torch.float64) for _ in range(3))
    layout = layout_on(segments, length, torch.device("cpu"))
    before, _ = branch_attention(None, query, key, value, None, layout=layout)
    for k in range(length):
        changed = value.clone()
        changed[:, :, k] += 1.0
        after, _ = branch_attention(None, query, key, changed, None, layout=layout)
        sees = {q for q in range(length) if not torch.equal(before[0, q], after[0, q])}
        expected = {
            q
            for q in range(k, length)
            if case_T[q] == case_T[k] >= 0 and (branch_T[k] == 0 or branch_T[k] == branch_T[q])
        }
        assert sees == expected


def test_branches_begin_where_the_sequences_part_and_restart_their_positions() -> None:
    first, second = some_examples()[:2]
    assert shared_prefix([first.input_ids, second.input_ids]) == 6  # the prompt, and the token both go on with
    (row,) = pack_rows([[first, second]], 1000)
    assert row.segments == (Segment(0, 6, (4, 4)),)
    assert row.tokens_T.tolist() == [5, 6, 7, 8, 9, 20, 21, 30, 31, 32, 40, 41, 21, 30]
    assert row.positions_T.tolist() == [*range(6), 6, 7, 8, 9, 6, 7, 8, 9]
    assert row.targets_N.tolist() == [30, 31, 32, 2, 20, 40, 41, 21, 30, 2]
    assert row.source_N.tolist() == [6, 7, 8, 9, 4, 5, 10, 11, 12, 13]
    assert row.sequence_N.tolist() == [0] * 4 + [1] * 6
    assert row.tokens == 14


def test_a_pair_costs_the_prompt_once() -> None:
    prompt, answer, strategy = [3] * 2000, [(4, 1.0)] * 301, [(5, 1.0)] * 60
    pair = [an_example("1", "A", prompt, *answer), an_example("1", "B", prompt, *strategy, *answer)]
    shared = sum(row.tokens for row in pack_rows([pair], 4096))
    separate = sum(row.tokens for row in pack_rows([pair], 4096, share=False))
    assert (shared, separate) == (2660, 4660)
    assert separate / shared == pytest.approx((2 * 2000 + 2 * 300 + 60) / (2000 + 2 * 300 + 60))


def test_rows_are_first_fit_decreasing_and_do_not_depend_on_the_order_given() -> None:
    cases = [[an_example(str(n), "A", [3] * n, (2, 1.0))] for n in (50, 30, 60, 40, 20, 150)]
    rows = pack_rows(cases, 100)
    assert [[len(e.input_ids) - 1 for e in row.examples] for row in rows] == [[150], [60, 40], [50, 30, 20]]
    for other in itertools.islice(itertools.permutations(cases), 1, 700, 100):
        assert [row.examples for row in pack_rows(other, 100)] == [row.examples for row in rows]


def test_copies_of_a_case_are_cases_of_their_own() -> None:
    from msgspec.structs import replace

    examples = some_examples()[:2]
    copies = [replace(example, copy=1) for example in examples]
    assert group_by_case([copies[1], *examples, copies[0]]) == [examples, copies]


def test_merged_weights_and_the_base_alone_give_the_same_as_peft() -> None:
    from peft import LoraConfig, get_peft_model

    base = a_model("qwen3")
    base.set_attn_implementation(ATTENTION)
    (row,) = pack_rows(group_by_case(some_examples()), 1000)
    plain = trained_logprobs(base, row)
    model = get_peft_model(base, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    adapted = trained_logprobs(model, row)
    assert torch.allclose(trained_logprobs(model, row, merged_weights(model)), adapted, rtol=0, atol=1e-12)
    assert not torch.allclose(plain, adapted, rtol=0, atol=1e-3)

    from schemas.settings import Trainer

    packing = packing_of(Trainer(), base.config, torch.device("cpu"))
    found = dict(zip(map(repr, some_examples()), base_logprobs(model, packing, some_examples()), strict=True))
    for number, example in enumerate(row.examples):
        assert torch.allclose(found[repr(example)], plain[row.sequence_N == number], rtol=0, atol=1e-12)


def test_models_with_windows_or_capped_scores_keep_their_own_attention() -> None:
    from transformers import Gemma2Config, LlamaConfig, MistralConfig, Qwen3Config

    assert shares_prompts(Qwen3Config())
    assert shares_prompts(LlamaConfig())
    assert not shares_prompts(Gemma2Config())
    assert not shares_prompts(MistralConfig(sliding_window=4096))
    assert not shares_prompts(Qwen3Config(use_sliding_window=True, sliding_window=16, max_window_layers=1))
