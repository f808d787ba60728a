"""Toys for tests: a random Qwen3 of 0.5 M parameters with its tokenizer, and LoRA adapters for it.

Weights and tokenizer come from the seed alone, so that two calls make the same model.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import msgspec

from schemas.adapters import MANIFEST, AdapterManifest, base_fingerprint, file_sha256

_ANSWER_BEGINS = """\
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false -%}
<think>

</think>

{% endif -%}
{%- endif -%}"""
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
"""
CHAT_TEMPLATE += _ANSWER_BEGINS
# As Qwen3's does: tools in the system turn, calls as blocks, results as the user's.
CALLING_TEMPLATE = """\
{%- if tools -%}
<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ 'user' if message.role == 'tool' else message.role }}
{% if message.role == 'assistant' and loop.last -%}
<think>
{{ message.reasoning_content or '' }}
</think>

{% endif -%}
{{ message.content }}
{%- for call in message.tool_calls or [] -%}
{%- if not loop.first or message.content %}{{ '\n' }}{% endif -%}
<tool_call>{{ '\n' }}
{%- set told = call.function.arguments -%}
{"name": "{{ call.function.name }}", "arguments": {{ told if told is string else (told | tojson) }}}
</tool_call>
{%- endfor -%}
<|im_end|>
{% endfor -%}
"""
CALLING_TEMPLATE += _ANSWER_BEGINS
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_TEXT = ["Metformin 500 mg twice daily.", "The patient denies chest pain.", "List each item once, as first mentioned."]


def make_tiny_model(folder: Path, seed: int = 0, vocab: int = 0, context: int = 512, hidden: int = 96) -> Path:
    """Writes a random tiny Qwen3 with tokenizer and chat template into `folder` and returns it."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    config = Qwen3Config(
        vocab_size=vocab or len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        initializer_range=0.2,  # wide, so that greedy choices do not hang on rounding
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def make_tiny_adapter(
    folder: Path, base: Path, version: str = "v0001-abcdef12", *, task: str = "toy", seed: int = 1, rank: int = 8
) -> Path:
    """Writes a random LoRA adapter of `base` with our manifest into `folder` and returns it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_" in name:
                    weight.normal_(0.0, 0.15)
        model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    write_manifest(folder, base, version, task=task, seed=seed)
    return folder


def write_manifest(folder: Path, base: Path, version: str, **fields: Any) -> None:
    """Writes (again) the manifest of an adapter folder as it lies there."""
    files = {p.name: file_sha256(p) for p in sorted(folder.iterdir()) if p.is_file() and p.name != MANIFEST}
    table = {
        "task": "toy",
        "version": version,
        "base": str(base),
        "base_sha256": base_fingerprint(base),
        "files": files,
        "watermark": {},
        "rows": 0,
        "pairs": 0,
        "settings": {},
        "seed": 0,
        "revision": "",
        "created_ms": 0,
    } | fields
    (folder / MANIFEST).write_bytes(msgspec.json.encode(msgspec.convert(table, AdapterManifest)))


def _tokenizer() -> Any:
    """Returns a byte-level tokenizer trained on a few lines, with Qwen3's markers."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=_SPECIAL,
        show_progress=False,
    )
    tokenizer.train_from_iterator([*_TEXT, string.printable], trainer)
    # As with Qwen3, the think markers are no special tokens: decoding must keep them.
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=_SPECIAL,
        chat_template=CHAT_TEMPLATE,
    )
