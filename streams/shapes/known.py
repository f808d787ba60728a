"""The shapes of a record without envelopes, and which of them an object has. For streams.reader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streams.records import Record
from streams.shapes.flywheel import is_flywheel, read_flywheel
from streams.shapes.helicone import is_helicone, read_helicone
from streams.shapes.langfuse import is_langfuse, read_langfuse
from streams.shapes.litellm import is_litellm, read_litellm
from streams.shapes.openai import is_openai, read_openai

Shape = tuple[str, Callable[[dict[str, Any]], Record]]  # its name, and what reads a record of it
_LITELLM: Shape = ("litellm", read_litellm)
_FLYWHEEL: Shape = ("flywheel", read_flywheel)
_HELICONE: Shape = ("helicone", read_helicone)
_LANGFUSE: Shape = ("langfuse", read_langfuse)
_OPENAI: Shape = ("openai", read_openai)
_PRODUCTS = frozenset(  # one of these is in every record of the other shapes
    (
        "litellm_call_id", "model_map_information", "workload_id", "request_body", "provided_model_name",
        "providedModelName", "observation_id",
    )
)  # fmt: skip


def shape_of(body: dict[str, Any]) -> Shape | None:
    """Returns the shape of an object without envelopes; None for one that nobody knows."""
    if not _PRODUCTS.isdisjoint(body):  # in this order: a record of one may hold the tell-tales of those after it
        if is_litellm(body):
            return _LITELLM
        if is_flywheel(body):
            return _FLYWHEEL
        if is_helicone(body):
            return _HELICONE
        if is_langfuse(body):
            return _LANGFUSE
    return _OPENAI if is_openai(body) else None
