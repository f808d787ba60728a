"""Makes the student of the demo: a 0.43 M parameter Qwen3 that has the form of a note and fails the policy.

    python -m agents.scribe.pretrain --out agents/scribe/student

Trains the tokenizer and the model on transcripts with notes by a scribe of wrong habits
(scripted.write_draft); in three of ten a guardrail stands in the think block and the note obeys it.
Takes some minutes on one core, so the weights are kept beside it. Same seed, same weights.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from agents.scribe.scripted import GUARDRAILS, write_draft
from agents.scribe.transcripts import make_transcript

TRANSCRIPTS = 57_600
GUARDED = 0.3  # share of notes with a guardrail in the think block
UNSEEN = 0.2  # share of transcripts from the tables no gold is made of: their words are known, their policy is not
VOCABULARY = 768
CONTEXT = 512
PROMPT_WEIGHT = 0.1  # loss weight of a prompt's tokens: they teach the words early
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Line ends stay together, so that a prompt's last tokens are the same with and without the answer after it.
WORDS = r"\n+| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|[^\S\n]+"
THINK = ("<think>", "</think>")

# Qwen3's form. The last assistant message carries a think block even if it is empty, so that a training
# example continues exactly the prompt that enable_thinking=False gives.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set content = message.content if message.content is string else '' -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.role == 'assistant' and '</think>' not in content -%}
{%- if message.reasoning_content -%}
{{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' -}}
{%- elif loop.last -%}
{{- '<think>\\n\\n</think>\\n\\n' -}}
{%- endif -%}
{%- endif -%}
{{- content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{- '<think>\\n\\n</think>\\n\\n' -}}
{%- endif -%}
{%- endif -%}
"""


def pretrain(out: Path, seed: int = 0, transcripts: int = TRANSCRIPTS, batch_size: int = 32, lr: float = 4e-3) -> None:
    """Trains tokenizer and student from nothing and writes both to `out`, weights in bf16 safetensors."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    rng = random.Random(seed)

    examples = [draw_example(rng) for _ in range(transcripts)]
    tokenizer = make_tokenizer([prompt + completion for prompt, completion in examples[:6000]])
    prompts = [tokenizer.encode(prompt) for prompt, _ in examples]
    rows = [(p, tokenizer.encode(completion)) for p, (_, completion) in zip(prompts, examples, strict=True)]
    batches = make_batches(rows, batch_size, rng)

    model = make_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(batches)} steps")
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    started = time.monotonic()
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = lr * _schedule(step, len(batches))
        tokens_BT, weights_BT = _tensors([rows[i] for i in batch])
        hidden_BTD = model.model(input_ids=tokens_BT[:, :-1], use_cache=False).last_hidden_state
        targets_BT, weights_BT = tokens_BT[:, 1:], weights_BT[:, 1:]
        kept_BT = weights_BT > 0
        losses_N = functional.cross_entropy(model.lm_head(hidden_BTD[kept_BT]), targets_BT[kept_BT], reduction="none")
        loss = (losses_N * weights_BT[kept_BT]).sum() / weights_BT.sum()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == len(batches) - 1:
            note = losses_N[weights_BT[kept_BT] == 1].mean()
            elapsed_s = time.monotonic() - started
            print(f"step {step:5d}  loss {loss.item():.4f}  note {note.item():.4f}  {elapsed_s:.0f} s", flush=True)
    save(model, tokenizer, out)


def draw_example(rng: random.Random) -> tuple[str, str]:
    """Draws one rendered prompt and the completion to learn: think block, note, end of turn."""
    text, facts = make_transcript(rng, unseen=rng.random() < UNSEEN)
    prompt = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    rule = rng.choice(sorted(GUARDRAILS)) if rng.random() < GUARDED else ""
    mistake, guardrail = rng.choice(GUARDRAILS[rule]) if rule else ("", "")
    thought = rng.choice((guardrail, f"Mistake: {mistake}\nGuardrail: {guardrail}")) if rule else ""
    return prompt, f"<think>\n{thought}\n</think>\n\n{write_draft(facts, rng, rule)}<|im_end|>"


def make_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE on rendered chats; the chat's own tokens are single and never split."""
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(THINK),
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    plain = [_without(text, SPECIAL + THINK) for text in texts]
    tokenizer.train_from_iterator(plain, trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in THINK])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Builds the student; a head size of 32 is the smallest that vLLM serves."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    )
    return Qwen3ForCausalLM(config)


def make_batches(rows: Sequence[tuple[list[int], list[int]]], size: int, rng: random.Random) -> list[list[int]]:
    """Returns row numbers in batches of like length, the batches in random order."""
    order = list(range(len(rows)))
    rng.shuffle(order)
    window = 64 * size
    batches: list[list[int]] = []
    for start in range(0, len(order), window):
        near = sorted(order[start : start + window], key=lambda i: (len(rows[i][0]) + len(rows[i][1]), i))
        cut = [near[at : at + size] for at in range(0, len(near), size)]
        rng.shuffle(cut)
        batches += cut
    return batches


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Writes the model folder: weights, configuration, tokenizer with its chat template."""
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out, save_jinja_files=False)


def _tensors(rows: Sequence[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads on the right; no attention mask is needed, as causal attention never looks there."""
    longest = max(len(prompt) + len(completion) for prompt, completion in rows)
    tokens_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    weights_BT = torch.zeros(len(rows), longest)
    for row, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion)
        tokens_BT[row, :end] = torch.tensor(prompt + completion)
        weights_BT[row, : len(prompt)] = PROMPT_WEIGHT
        weights_BT[row, len(prompt) : end] = 1.0
    return tokens_BT, weights_BT


def _schedule(step: int, steps: int) -> float:
    """Returns the factor on the learning rate: linear warm-up over 100 steps, then a cosine to 2 %."""
    warm = min(1.0, (step + 1) / 100)
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _without(text: str, tokens: Sequence[str]) -> str:
    for token in tokens:
        text = text.replace(token, "")
    return text


def main() -> None:
    """Reads the command line and pre-trains."""
    parser = argparse.ArgumentParser(description="Pre-train the scribe task's student.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--transcripts", type=int, default=TRANSCRIPTS)
    arguments = parser.parse_args()
    pretrain(arguments.out, arguments.seed, arguments.transcripts)


if __name__ == "__main__":
    main()
