"""Chat messages of any vendor, as OpenAI's chat completions write them.

Text, tool calls and their results keep their structure. Thinking text is left out. Images, audio and files are
refused: leaving them out would make another prompt of it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from schemas.case import Message
from schemas.chat import split_thinking
from schemas.errors import RecordError
from streams.shapes.values import arguments, kind, parsed, text

REDACTED = "redacted-by-litellm"
_TRUNCATED = "litellm_truncated"
_OTHERS = {  # what other loggers write in place of a whole text
    "__REDACTED__": "OpenInference; OPENINFERENCE_HIDE_INPUTS, _OUTPUTS or _TEXT takes it out",
    "<fully masked due to failed mask function>": "Langfuse, whose mask function failed",
    "[REDACTED]": "its logger",
}
# Nearly no text holds the one or is as short and begins so, all those above do. Finding a letter takes a tenth of
# finding a word, and a long text is told by its length for half of what looking at its beginning takes.
_LETTER, _SHORT, _FIRST = "_", max(map(len, (REDACTED, *_OTHERS))), frozenset("r<[")

# Tuples where what is looked up may be of any type; a set would raise for an array.
_PLAIN = ("user", "assistant", "system", "developer")
_ROLES = {
    "human": "user",
    "ai": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "gpt": "assistant",
    "function": "tool",
}
_TEXT = ("text", "input_text", "output_text")
_RESULT = frozenset(("role", "content", "tool_call_id"))
_CALLING = frozenset(("role", "content", "tool_calls"))
_THINKING = frozenset(("thinking", "redacted_thinking", "reasoning", "reasoning_content"))
_TOOL_PARTS = frozenset(("tool_use", "tool_call", "tool_result", "tool_call_response", "tool-call", "tool-result"))


def read_messages(raw: Any, where: str = "messages") -> tuple[Message, ...]:
    """Returns the messages of a prompt. Raises RecordError, also where no user message holds any text."""
    if raw.__class__ is not list:
        raise RecordError("wrong_type", f"`{where}` is {kind(raw)}, expected an array")
    if not raw:
        raise RecordError("no_messages", f"`{where}` is empty")
    messages: list[Message] = []
    asked = False
    for item in raw:
        if item.__class__ is not dict:
            raise RecordError("wrong_type", f"one of `{where}` is {kind(item)}, expected an object")
        content, role = item.get("content"), item.get("role")
        if content.__class__ is str and len(item) == 2 and role in _PLAIN:
            if _LETTER in content or (len(content) <= _SHORT and content[:1] in _FIRST):
                check_text(content, where)
            messages.append(Message(role, content))
            if role == "user" and not asked:
                asked = content != "" and not content.isspace()
        elif role in _PLAIN and (content := _said_in_parts(item)) is not None:
            check_text(content, where)
            messages.append(Message(role, content))
            asked = asked or (role == "user" and not content.isspace() and content != "")
        else:
            for message in _message(item, where):
                if message.content.__class__ is str:
                    check_text(message.content, where)
                messages.append(message)
                asked = asked or (message.role == "user" and message.text().strip() != "")
    if not asked:
        raise RecordError("no_messages", f"no message of the user in `{where}` holds any text")
    return tuple(messages)


def read_completion(raw: Any, where: str) -> tuple[Message, ...]:
    """Returns an answer: an assistant's message, a text, or an array of either; nothing where there is none."""
    if not raw:
        return ()
    if raw.__class__ is list and len(raw) == 1 and raw[0].__class__ is dict:
        (only,) = raw
        if len(only) == 2 and only.get("content").__class__ is str and only.get("role") == "assistant":
            raw = only
        elif only.get("role") == "assistant" and (said := _said_in_parts(only)) is not None:
            check_text(said, where)
            return (Message("assistant", _spoken(said)),)
    if (
        raw.__class__ is dict
        and (content := raw.get("content")).__class__ is str
        and not (raw.get("tool_calls") or raw.get("function_call"))
        and raw.get("role", "assistant") == "assistant"
    ):
        if _LETTER in content or (len(content) <= _SHORT and content[:1] in _FIRST):
            check_text(content, where)
        return (Message("assistant", _spoken(content) if "<" in content else content),)
    if (
        raw.__class__ is dict
        and raw.keys() <= _CALLING
        and raw.get("role", "assistant") == "assistant"
        and _are_calls(calls := raw.get("tool_calls"))
        and ((said := raw.get("content")) is None or said.__class__ is str)
    ):
        check_text(said or "", where)
        return (Message("assistant", said and _spoken(said), None, calls),)
    if isinstance(raw, str):
        check_text(raw, where)
        return (Message("assistant", _spoken(raw)),)
    items = raw if isinstance(raw, list) else [raw]
    if items and all(isinstance(item, dict) and "role" not in item and item.get("type") in _TEXT for item in items):
        items = [{"content": items}]  # the parts of one message
    found: list[Message] = []
    for item in items:
        if isinstance(item, str):
            item = {"content": item}
        if not isinstance(item, dict):
            raise RecordError("wrong_type", f"`{where}` is {kind(item)}, expected an object or text")
        found += _message({"role": "assistant"} | item, where)
    for message in found:
        check_text(message.text(), where)
    return tuple(_unthinking(message) for message in found if message.content is not None or message.tool_calls)


def asked_and_answered(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """Splits a conversation that was logged as one: its last turn, where it is the assistant's, is the answer."""
    end = len(messages)
    while end > 1 and messages[end - 1].role == "assistant":
        end -= 1
    return (messages, ()) if end == len(messages) else (messages[:end], messages[end:])


def only_text(parts: list[Any], types: tuple[str, ...] = _TEXT) -> str:
    """Returns the text of an array of parts that holds one and thinking at most; "" for any other."""
    said = ""
    for part in parts:
        name = part.get("type") if part.__class__ is dict else None
        if name.__class__ is not str or (said and name in types):
            return ""
        if name in types and part.get("text").__class__ is str:
            said = part["text"]
        elif name not in _THINKING:
            return ""
    return said


def check_text(content: str, where: str) -> None:
    """Raises RecordError for a text that its logger has redacted or cut."""
    if _LETTER not in content and (len(content) > _SHORT or content[:1] not in _FIRST):
        return
    if content in _OTHERS:
        raise RecordError("redacted", f"`{where}` is redacted by {_OTHERS[content]}")
    if content == REDACTED:
        raise RecordError("redacted", f"`{where}` is redacted by LiteLLM; turn_off_message_logging takes it out")
    if _TRUNCATED in content and "skipped" in content:
        raise RecordError("truncated", f"`{where}` is cut by LiteLLM")


def _message(item: dict[str, Any], where: str) -> list[Message]:
    """Returns one message; an Anthropic or OTLP message with tool results becomes several."""
    role = item.get("role", item.get("type"))
    if role.__class__ is not str:
        raise RecordError("wrong_type", f"`{where}[].role` is {kind(role)}, expected text")
    role = _ROLES.get(role, role)
    content = item.get("content")
    if (said := _said_in_parts(item)) is not None:
        check_text(said, where)
        return [Message(role, said)]
    if role == "tool" and item.keys() == _RESULT and content.__class__ is str and item["tool_call_id"].__class__ is str:
        return [Message("tool", content, None, None, item["tool_call_id"])]
    if content is None and role == "assistant" and item.keys() <= _CALLING and _are_calls(item.get("tool_calls")):
        return [Message("assistant", None, None, item["tool_calls"])]
    calls = _calls(item, where)
    results: list[Message] = []
    if content is None and role == "assistant" and isinstance(item.get("refusal"), str):
        content = item["refusal"]
    if isinstance(content, dict):
        content = [content]
    ours = True  # an array of parts that chat completions know too, and that stays one
    if content is None and isinstance(item.get("parts"), list):
        content, ours = item["parts"], False
    if isinstance(content, list):
        ours = ours and not any(isinstance(part, dict) and part.get("type") in _TEXT[1:] for part in content)
        content = _parts(content, where, calls, results)
        if not ours and content and len(content) == 1:
            content = content[0]["text"]
    elif content is not None and not isinstance(content, str):
        raise RecordError("wrong_type", f"`{where}[].content` is {kind(content)}, expected text or an array of parts")
    name, call_id = item.get("name"), item.get("tool_call_id")
    for key, value in (("name", name), ("tool_call_id", call_id)):
        if value is not None and not isinstance(value, str):
            raise RecordError("wrong_type", f"`{where}[].{key}` is {kind(value)}, expected text")
    if results and not content and not calls:
        return results
    return [*results, Message(role, content, name, calls or None, call_id)]


def _said_in_parts(item: dict[str, Any]) -> str | None:
    """Returns the text of OTLP's usual message, which holds one part; None for any other."""
    parts = item.get("parts")
    if parts.__class__ is list and len(parts) == 1 and len(item) <= 3 and item.get("content") is None:
        part = parts[0]
        if part.__class__ is dict and part.get("type") == "text" and part.get("content").__class__ is str:
            said: str = part["content"]
            return said
    return None


def _parts(parts: list[Any], where: str, calls: list[dict[str, Any]], results: list[Message]) -> Any:
    """Returns the text of a message in parts: None without any, a plain text for one part of ours, else the array."""
    texts: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            texts.append({"type": "text", "text": part})
            continue
        if not isinstance(part, dict):
            raise RecordError("wrong_type", f"a part of `{where}[].content` is {kind(part)}, expected an object")
        name = part.get("type", "text")
        if name in _TEXT:
            said = part.get("text", part.get("content"))
            if not isinstance(said, str):
                raise RecordError("wrong_type", f"a text part of `{where}` holds {kind(said)}, expected text")
            check_text(said, where)
            texts.append({"type": "text", "text": said})
        elif name == "refusal" and isinstance(part.get("refusal"), str):
            texts.append({"type": "text", "text": part["refusal"]})
        elif isinstance(name, str) and name in _TOOL_PARTS:
            _tool_part(name, part, where, calls, results)
        elif isinstance(name, str) and name in _THINKING:
            continue
        else:
            raise RecordError("not_text", f"`{where}` holds a part of type {text(name)[:40] or kind(name)}")
    return texts or None


def _tool_part(
    name: str, part: dict[str, Any], where: str, calls: list[dict[str, Any]], results: list[Message]
) -> None:
    if name in ("tool_use", "tool_call", "tool-call"):
        made = part.get("name", part.get("toolName"))
        if not isinstance(made, str):
            raise RecordError("wrong_type", f"a tool call in `{where}` has no name")
        given = part.get("arguments", part.get("input", part.get("args")))
        call = {"id": text(part.get("id", part.get("toolCallId"))), "type": "function"}
        calls.append(call | {"function": {"name": made, "arguments": arguments(given)}})
        return
    given = part.get("response", part.get("result", part.get("content", part.get("output"))))
    if isinstance(given, list):  # Anthropic: parts again
        given = _parts(given, where, [], [])
        given = "\n".join(one["text"] for one in given or [])
    call_id = text(part.get("tool_use_id") or part.get("id") or part.get("toolCallId"))
    results.append(Message("tool", given if isinstance(given, str) else arguments(given), None, None, call_id))


def _are_calls(raw: Any) -> bool:
    """Whether something is an array of calls as chat completions write them."""
    if raw.__class__ is not list or not raw:
        return False
    return all(call.__class__ is dict and "function" in call for call in raw)


def _calls(item: dict[str, Any], where: str) -> list[dict[str, Any]]:
    raw = item.get("tool_calls")
    if raw is None:
        legacy = item.get("function_call")
        raw = [{"type": "function", "function": legacy}] if isinstance(legacy, dict) else []
    raw = parsed(raw)
    if not isinstance(raw, list):
        raise RecordError("wrong_type", f"`{where}[].tool_calls` is {kind(raw)}, expected an array")
    calls: list[dict[str, Any]] = []
    for call in raw:
        if not isinstance(call, dict):
            raise RecordError("wrong_type", f"a tool call in `{where}` is {kind(call)}, expected an object")
        if "function" not in call and "name" in call:  # flat: LangChain, OTLP
            _tool_part("tool_call", call, where, calls, [])
        else:
            calls.append(call)
    return calls


def _unthinking(message: Message) -> Message:
    content = message.content
    if isinstance(content, list) and len(content) == 1:
        content = content[0]["text"]
    if isinstance(content, str):
        content = _spoken(content)
    return message if content is message.content else msgspec.structs.replace(message, content=content)


def _spoken(content: str) -> str:
    """Returns an answer without the thinking that some servers leave in front of it."""
    return split_thinking(content)[1] if content.lstrip().startswith("<think>") else content
