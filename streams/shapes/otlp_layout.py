"""Which of a span's attributes hold what: worked out once for each set of names, since a service's spans repeat it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

Attributes = dict[str, Any]
Groups = dict[str, list[dict[str, Any]]]  # prefix -> objects
Place = tuple[str, tuple[str, ...]]  # an attribute's name, and where in its object it belongs

_MANY, _LONG = 256, 10_000  # attributes, and characters of all their names; a layout beyond is not kept
_PREFIXES = (
    "gen_ai.prompt.",
    "gen_ai.completion.",
    "llm.input_messages.",
    "llm.output_messages.",
    "llm.tools.",
    "llm.request.functions.",
)
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
    numbered: list[tuple[str, list[tuple[bool, list[Place]]]]]  # prefix, its objects in their order

    def groups(self, attributes: Attributes) -> Groups:
        """Returns attributes such as gen_ai.prompt.0.role as objects in their order, by prefix."""
        groups: Groups = {}
        for prefix, objects in self.numbered:
            groups[prefix] = found = []
            for plain, places in objects:
                held: dict[str, Any] = {}
                found.append(held)
                for name, path in places:
                    if plain:
                        held[path[-1]] = attributes[name]
                    else:
                        _put(held, path, attributes[name])
        return groups


def layout_of(attributes: Attributes) -> Layout:
    """Returns the layout of a span with these attributes."""
    names = tuple(attributes)
    if len(names) > _MANY or sum(map(len, names)) > _LONG:
        return _layout.__wrapped__(names)
    return _layout(names)


@lru_cache(maxsize=512)
def _layout(names: tuple[str, ...]) -> Layout:
    groups: dict[str, dict[int, list[Place]]] = {}
    for name in names:
        prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
        if prefix is not None:
            number, _, rest = name[len(prefix) :].partition(".")
            if rest and number.isdecimal() and len(number) <= 5:
                groups.setdefault(prefix, {}).setdefault(int(number), []).append((name, tuple(rest.split("."))))
    return Layout(
        _present(_NAMES, names),
        _present(_COUNTS, names),
        [(param, name) for name, param in _PARAMS.items() if name in names],
        [
            (prefix, [(_is_plain([path for _, path in held]), held) for _, held in sorted(numbered.items())])
            for prefix, numbered in groups.items()
        ],
    )


def _present(wanted: Mapping[str, tuple[str, ...]], names: Iterable[str]) -> list[tuple[str, list[str]]]:
    there = {field: [name for name in order if name in names] for field, order in wanted.items()}
    return [(field, found) for field, found in there.items() if found]


def _is_plain(paths: list[tuple[str, ...]]) -> bool:
    """Whether an object is a message of plain fields: its own, or those of its `message`, which then stands for it."""
    return all(len(path) == 1 for path in paths) or all(len(path) == 2 and path[0] == "message" for path in paths)


def _put(table: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1][:16]:
        inner = table.get(name)
        if inner.__class__ is not dict:
            inner = table[name] = {}
        table = inner
    table[path[-1]] = value
