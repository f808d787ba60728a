"""JSON answers, and JSON Schema on them.

jsonschema as it is searches property names with Python's `re`, compares items pair by pair and fetches schemas over
the network; each could be made to hang by an answer, so those keywords are ours.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from agents.verifiers.finding import Finding
from agents.verifiers.patterns import TooSlow, search
from schemas.errors import SettingsError
from schemas.settings.check_rubric import check_schema
from schemas.settings.verifiers import JsonCheck

_BLOCK = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL | re.IGNORECASE)


def check_json(check: JsonCheck, answer: str, most: int) -> list[Finding]:
    """Finds at most `most` places where an answer is not the JSON it should be."""
    body = answer.strip()
    block = _BLOCK.fullmatch(body) if check.code_block else None
    body = block[1] if block else body
    try:
        value = json.loads(body, parse_constant=_refused)
    except json.JSONDecodeError as error:
        place = body[error.pos : error.pos + 40].strip()
        why = f"the answer is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        return [Finding(place, why, "Answer with JSON alone.")]
    except (ValueError, RecursionError):
        return [Finding("", "the answer is not JSON: a number or nesting beyond all bounds", "Answer with plain JSON.")]
    if not check.schema:
        return []
    validator = _validator(json.dumps(check.schema, sort_keys=True))
    try:
        errors = list(itertools.islice(validator.iter_errors(value), most))
    except TooSlow as error:
        return [Finding("", str(error))]
    except RecursionError:
        return [Finding("", "the answer is nested too deep to be checked", "Nest less.")]
    return [Finding(_quoted(error.instance, answer), _why(error), "") for error in errors]


def schema_errors(schema: dict[str, Any], value: Any, most: int) -> list[str]:
    """Returns at most `most` reasons why a value does not obey a schema, which may itself be anybody's.

    A schema that is none, or cannot be checked within bounds, is a reason too: what cannot be checked never passes.
    """
    try:
        check_schema(schema, "its tool")
        validator = _validator(json.dumps(schema, sort_keys=True))
        return [_why(error) for error in itertools.islice(validator.iter_errors(value), most)]
    except (SettingsError, TooSlow) as error:
        return [str(error)]
    except RecursionError:
        return ["nested too deep to be checked"]


def _why(error: Any) -> str:
    place = "/".join(str(part) for part in error.absolute_path)
    return f"{error.message[:200]} (at {place or 'the top'})"


def _quoted(instance: Any, answer: str) -> str:
    """Returns a plain value as it stands in the answer, "" where it cannot be found as it is."""
    if isinstance(instance, dict | list):
        return ""
    for ascii_only in (False, True):
        text = json.dumps(instance, ensure_ascii=ascii_only)
        if text in answer:
            return text
    return ""


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


@lru_cache(maxsize=256)
def _validator(schema_text: str) -> Any:
    import jsonschema.validators
    from referencing import Registry

    schema = json.loads(schema_text)
    bounded = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "uniqueItems": _unique_items,
    }
    kind = jsonschema.validators.extend(jsonschema.validators.validator_for(schema), bounded)
    return kind(schema, registry=Registry())  # one that fetches nothing


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    if isinstance(instance, str) and search(pattern, instance) is None:
        yield _error(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Mapping[str, Any], instance: Any, schema: Any) -> Iterator[Any]:
    if isinstance(instance, dict):
        for pattern, subschema in patterns.items():
            for name, value in instance.items():
                if search(pattern, name):
                    yield from validator.descend(value, subschema, path=name, schema_path=pattern)


def _additional_properties(validator: Any, wanted: Any, instance: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
    if not isinstance(instance, dict):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for name, value in instance.items():
        if name in known or any(search(pattern, name) for pattern in patterns):
            continue
        if wanted is False:
            yield _error(f"{name!r} is not expected here")
        elif isinstance(wanted, dict):
            yield from validator.descend(value, wanted, path=name)


def _unique_items(validator: Any, wanted: bool, instance: Any, schema: Any) -> Iterator[Any]:
    if wanted and isinstance(instance, list):
        texts = {json.dumps(_even(item), sort_keys=True) for item in instance}
        if len(texts) < len(instance):
            yield _error(f"{len(instance) - len(texts)} items stand there more than once")


def _even(value: Any) -> Any:
    """Returns a value in which equal numbers look alike: JSON Schema takes 1.0 for 1."""
    if isinstance(value, dict):
        return {key: _even(held) for key, held in value.items()}
    if isinstance(value, list):
        return [_even(held) for held in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _error(message: str) -> Any:
    from jsonschema.exceptions import ValidationError

    return ValidationError(message)
