"""Rendering of chat prompts: the one place where inference and training agree on tokens.

Pair A must be trained on exactly the prompt that inference uses, so the local engine
(agents.local) and the dataset (trainer.dataset) both render here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from schemas.case import Message, Strategy
from schemas.errors import TrainingError
from schemas.tools import template_messages


def to_chat(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Returns messages as the plain dictionaries that chat templates and OpenAI clients take."""
    return [msgspec.to_builtins(message) for message in messages]


def render_prompt(
    tokenizer: Any, messages: Sequence[Message], thinking: bool = False, tools: Sequence[dict[str, Any]] = ()
) -> str:
    """Returns the text up to where the assistant's answer starts; `tools` as schemas.tools.template_tools has them.

    A template that knows no tools leaves them out.
    With `thinking` off, a template of the Qwen3 family ends in an empty think block.
    Raises TrainingError where the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise TrainingError(
            f"the tokenizer of {getattr(tokenizer, 'name_or_path', 'the base model')} has no chat template; "
            "choose a chat model as base or add chat_template to its tokenizer_config.json."
        )
    text: str = tokenizer.apply_chat_template(
        template_messages(messages),
        tools=list(tools) or None,
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=thinking,
    )
    return text


def render_answer(
    tokenizer: Any, messages: Sequence[Message], answer: Message, tools: Sequence[dict[str, Any]] = ()
) -> str:
    """Returns the text that a model writes behind the prompt to give this answer, its calls of tools included.

    Raises TrainingError where the template does not write the calls, or writes the turn otherwise than it asks for it.
    """
    turn = [*template_messages(messages), *template_messages([answer])]
    whole = tokenizer.apply_chat_template(turn, tools=list(tools) or None, tokenize=False, enable_thinking=False)
    prompt = render_prompt(tokenizer, messages, False, tools)
    open_prompt = render_prompt(tokenizer, messages, True, tools)  # a template may close the turn without a think block
    found = next((whole[len(start) :] for start in (prompt, open_prompt) if whole.startswith(start)), None)
    names = [call["function"]["name"] for call in answer.tool_calls or ()]
    if found is None or not all(name in found for name in names):
        raise TrainingError(
            f"the chat template of {getattr(tokenizer, 'name_or_path', 'the base model')} writes no calls of tools "
            "behind the prompt it makes; choose a base whose template knows tools."
        )
    return str(found.removeprefix(_EMPTY_BLOCK).rpartition(tokenizer.eos_token)[0])


_EMPTY_BLOCK = "<think>\n\n</think>\n\n"


def _is_json(text: str) -> bool:
    if not text.lstrip().startswith("{"):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def strategy_text(strategy: Strategy) -> str:
    """Returns a strategy as the think block of pair B holds it."""
    return f"Mistake: {strategy.mistake}\nGuardrail: {strategy.guardrail}"


def split_thinking(text: str) -> tuple[str, str]:
    """Splits a completion into (thinking, answer); an unclosed think block leaves no answer.

    JSON that only speaks of the tags is an answer as a whole.
    """
    if "</think>" in text and not _is_json(text):
        thinking, _, answer = text.partition("</think>")
        return thinking.replace("<think>", "", 1).strip(), answer.strip()
    if text.lstrip().startswith("<think>"):
        return text.replace("<think>", "", 1).strip(), ""
    return "", text.strip()
