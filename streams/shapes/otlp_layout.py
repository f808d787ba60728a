"""Which of a span's attributes hold what: worked out once for each set of names, since a service's spans repeat it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

Attributes = dict[str, Any]
Groups = dict[str, list[dict[str, Any]]]  # prefix -> objects
Template = dict[str, Any]  # an object with the names of attributes in place of their values

_MANY, _LONG = 256, 10_000  # attributes, and characters of all their names; a layout beyond is not kept
_PREFIXES = (
    "gen_ai.prompt.",
    "gen_ai.completion.",
    "llm.input_messages.",
    "llm.output_messages.",
    "llm.tools.",
    "llm.request.functions.",
)
_OF_TOOLS = _PREFIXES[4:]
_CALLING = frozenset(("role", "content", "name", "tool_call_id", "tool_calls"))
_PARAMS = {
    f"gen_ai.request.{name}": name
    for name in ("temperature", "top_p", "top_k", "max_tokens", "frequency_penalty", "presence_penalty", "seed")
} | {"gen_ai.request.stop_sequences": "stop"}
# Fields of a record, and the attributes that tell them; the first that is there counts.
_NAMES = {
    "event_id": ("gen_ai.response.id",),
    "session_id": ("gen_ai.conversation.id", "session.id"),
    "workload": ("gen_ai.agent.name", "workload", "gen_ai.prompt.name"),
    "user": ("user.id", "enduser.id"),
    "model": ("gen_ai.response.model", "gen_ai.request.model", "llm.model_name"),
}
_COUNTS = {
    "prompt_tokens": ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt"),
    "completion_tokens": (
        "gen_ai.usage.output_tokens",
        "gen_ai.usage.completion_tokens",
        "llm.token_count.completion",
    ),
}


class Layout(NamedTuple):
    """What a span with certain names can tell: (field, the attributes of these that are there), and so on."""

    names: list[tuple[str, list[str]]]
    counts: list[tuple[str, list[str]]]
    params: list[tuple[str, str]]  # (of a call, attribute)
    numbered: list[tuple[str, list[Template]]]  # prefix, its objects in their order

    def groups(self, attributes: Attributes) -> Groups:
        """Returns attributes such as gen_ai.prompt.0.role as objects in their order, by prefix."""
        groups: Groups = {}
        for prefix, templates in self.numbered:  # a comprehension takes half as long again for so few
            filled = groups[prefix] = []
            for one in templates:
                filled.append(_filled(one, attributes))
        return groups


def _filled(template: Template, attributes: Attributes) -> dict[str, Any]:
    filled = {}
    for name, held in template.items():
        if held.__class__ is str:
            filled[name] = attributes[held]
        elif held.__class__ is list:
            filled[name] = [attributes[one] if one.__class__ is str else _filled(one, attributes) for one in held]
        else:
            filled[name] = _filled(held, attributes)
    return filled


def layout_of(attributes: Attributes) -> Layout:
    """Returns the layout of a span with these attributes."""
    names = tuple(attributes)
    if len(names) > _MANY or len("".join(names)) > _LONG:
        return _layout.__wrapped__(names)
    return _layout(names)


@lru_cache(maxsize=512)
def _layout(names: tuple[str, ...]) -> Layout:
    groups: dict[str, dict[int, Template]] = {}
    for name in names:
        prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
        if prefix is not None:
            number, _, rest = name[len(prefix) :].partition(".")
            if rest and number.isdecimal() and len(number) <= 5:
                _put(groups.setdefault(prefix, {}).setdefault(int(number), {}), rest.split("."), name)
    return Layout(
        _present(_NAMES, names),
        _present(_COUNTS, names),
        [(param, name) for name, param in _PARAMS.items() if name in names],
        [
            (prefix, [_message(one, prefix not in _OF_TOOLS) for _, one in sorted(numbered.items())])
            for prefix, numbered in groups.items()
        ],
    )


def _present(wanted: Mapping[str, tuple[str, ...]], names: Iterable[str]) -> list[tuple[str, list[str]]]:
    there = {field: [name for name in order if name in names] for field, order in wanted.items()}
    return [(field, found) for field, found in there.items() if found]


def _message(template: Template, may_call: bool) -> Template:
    """Returns OpenInference's message where an object is that alone, and that of plain fields; else the object.

    The calls of a message are an array in their order, each without what is around it alone.
    """
    message = template.get("message")
    if len(template) == 1 and isinstance(message, dict):
        if all(isinstance(held, str) for held in message.values()):
            return message
        if may_call and isinstance(message.get("tool_calls"), dict) and message.keys() <= _CALLING:
            template = message
    calls = template.get("tool_calls")
    if may_call and isinstance(calls, dict) and template.keys() <= _CALLING:
        return template | {"tool_calls": [_call(calls[number]) for number in sorted(calls, key=lambda n: (len(n), n))]}
    return template


def _call(template: Any) -> Any:
    call = template.get("tool_call") if isinstance(template, dict) else None
    return call if isinstance(call, dict) and "tool_call" not in call else template


def _put(table: Template, path: list[str], name: str) -> None:
    for part in path[:-1][:16]:
        inner = table.get(part)
        if inner.__class__ is not dict:
            inner = table[part] = {}
        table = inner
    table[path[-1]] = name
