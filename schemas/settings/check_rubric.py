"""What the types cannot say about rubrics and panels of judges; settings and rubric files are both checked here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from schemas.errors import SettingsError
from schemas.settings.rubric import Panel, Rubric
from schemas.settings.verifiers import (
    Check,
    ExactCheck,
    JsonCheck,
    LengthCheck,
    NumericCheck,
    PythonCheck,
    RegexCheck,
)

_LIMITS = ("characters", "words", "lines", "tokens")


def check_rubric(rubric: Rubric, where: str) -> None:
    """Raises SettingsError for the first mistake; `where` says which rubric."""
    ids = [rule.id for rule in rubric.rules]
    if not ids:
        raise SettingsError(f"{where} has no rules; the judge needs at least one.")
    if len(ids) != len(set(ids)):
        raise SettingsError(f"{where}.rules: rule ids must differ from each other: {ids}")
    _check_mark(rubric, where)
    for rule in rubric.rules:
        if rule.check is not None:
            _check_check(rule.check, f"{where}, rule {rule.id!r}, check")


def check_panel(panel: Panel, temperature: float, where: str) -> None:
    """Raises SettingsError where a panel's votes could not differ or its tie-break cannot happen."""
    if panel.votes > 1 and temperature == 0:
        raise SettingsError(
            f"{where}.panel.votes is {panel.votes}, but judge.temperature is 0: the same model would be asked the "
            "same thing again. Set judge.temperature to 0.7 or so, or name other models in panel.judges."
        )
    for number, judge in enumerate(panel.judges):
        if not judge.model:
            raise SettingsError(f"{where}.panel.judges[{number}].model is missing; set a LiteLLM model string.")
    escalates = panel.decide == "escalate"
    if escalates and not panel.tie_break.model:
        raise SettingsError(
            f'{where}.panel.decide is "escalate"; name the judge that decides in panel.tie_break.model.'
        )
    if escalates and panel.votes * (1 + len(panel.judges)) < 2:
        raise SettingsError(f"{where}.panel: one vote is never a tie; set panel.votes above 1, or panel.judges.")
    if panel.tie_break.model and not escalates:
        raise SettingsError(f'{where}.panel.tie_break is only asked with decide = "escalate"; it is {panel.decide!r}.')


def _check_mark(rubric: Rubric, where: str) -> None:
    mark, scale = rubric.pass_mark, rubric.scale
    lowest, what = 0.0, "the sum of the rules' points"
    if scale is not None:
        if not scale.lowest < scale.highest:
            raise SettingsError(f"{where}.scale runs from {scale.lowest:g} to {scale.highest:g}; expected upwards.")
        for level in scale.levels:
            if not _is_on(level, scale.lowest, scale.highest):
                raise SettingsError(
                    f"{where}.scale.levels: {level!r} is no grade from {scale.lowest:g} to {scale.highest:g}."
                )
        if mark is None:
            middle = scale.lowest + 0.8 * (scale.highest - scale.lowest)
            raise SettingsError(
                f"{where} grades answers from {scale.lowest:g} to {scale.highest:g}, but says nowhere which grade "
                f"passes. Add pass_mark, for example pass_mark = {middle:g}. Only a rubric without a scale has a "
                "default: every rule obeyed."
            )
        lowest, what = scale.lowest, "the scale's end"
    if mark is not None and not lowest < mark <= rubric.max_score:
        raise SettingsError(
            f"{where}.pass_mark is {mark}; expected above {lowest:g} and at most {rubric.max_score:g}, {what}."
        )


def _is_on(level: str, lowest: float, highest: float) -> bool:
    try:
        return lowest <= float(level) <= highest
    except ValueError:
        return False


def _check_check(check: Check, where: str) -> None:
    match check:
        case JsonCheck():
            check_schema(check.schema, where)
        case RegexCheck():
            if not check.must and not check.must_not:
                raise SettingsError(f"{where}: expected patterns in must or must_not; found none.")
            for pattern in (*check.must, *check.must_not):
                _check_pattern(pattern, where)
        case LengthCheck():
            _check_limits(check, where)
        case ExactCheck() | NumericCheck():
            if (check.value is not None) + bool(check.prompt_pattern) + bool(check.record) != 1:
                raise SettingsError(
                    f"{where}: expected one of value, prompt_pattern and record, which says what the answer is "
                    "compared with."
                )
            _check_expression(check.record, where)
            for pattern in (check.prompt_pattern, check.answer_pattern):
                _check_pattern(pattern, where)
        case PythonCheck():
            if not check.function:
                raise SettingsError(f'{where}: function is empty; expected "package.module:function".')
        case _:
            pass


def check_schema(schema: dict[str, Any], where: str) -> None:
    """Raises SettingsError for what is no JSON Schema, or could not be followed when an answer comes."""
    if not schema:
        return
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        place = "/".join(str(part) for part in error.absolute_path) or "its top"
        raise SettingsError(f"{where}: its schema is no JSON Schema: {error.message} (at {place}).") from None
    _check_references(schema, where)


def _check_references(schema: dict[str, Any], where: str) -> None:
    """Raises SettingsError for what could not be followed when an answer comes, or not within bounds."""
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    resource = DRAFT202012.create_resource(schema)
    resolver = Registry().with_resource("", resource).resolver()
    keys = set[str]()
    for part in _parts(schema):
        keys |= part.keys()
        for name in ("$ref", "$dynamicRef"):
            reference = part.get(name)
            if not isinstance(reference, str):
                continue
            try:
                if not reference.startswith("#"):
                    raise Unresolvable(reference)
                resolver.lookup(reference)
            except Unresolvable:
                raise SettingsError(
                    f"{where}: its schema refers to {reference!r}, which is not in it. Nothing is fetched: put it "
                    "under $defs."
                ) from None
    if {"patternProperties", "unevaluatedProperties"} <= keys:
        raise SettingsError(
            f"{where}: its schema has both patternProperties and unevaluatedProperties, which cannot be checked in "
            "bounded time. Use additionalProperties."
        )


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """Yields every object in a schema."""
    if isinstance(value, dict):
        yield value
    for held in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _parts(held)


def _check_pattern(pattern: str, where: str) -> None:
    import regex

    try:
        regex.compile(pattern)
    except regex.error as error:
        raise SettingsError(
            f"{where}: {pattern!r} is no regular expression: {error}. In TOML, write patterns in 'single quotes'."
        ) from None


def _check_expression(expression: str, where: str) -> None:
    if not expression:
        return
    import jmespath
    from jmespath.exceptions import JMESPathError

    try:
        jmespath.compile(expression)
    except JMESPathError as error:
        raise SettingsError(f"{where}: record {expression!r} is no JMESPath expression: {error}") from None


def _check_limits(check: LengthCheck, where: str) -> None:
    limits = {name: (getattr(check, f"min_{name}"), getattr(check, f"max_{name}")) for name in _LIMITS}
    if all(limit == (None, None) for limit in limits.values()):
        raise SettingsError(f"{where}: expected a limit such as max_words; found none.")
    for name, (low, high) in limits.items():
        if low is not None and high is not None and low > high:
            raise SettingsError(f"{where}: min_{name} is {low}, above max_{name}, {high}.")
    if limits["tokens"] == (None, None):
        return
    if not (Path(check.tokenizer) / "tokenizer.json").is_file():
        raise SettingsError(
            f"{where}: tokens are counted by a tokenizer; set tokenizer to a model folder that holds tokenizer.json. "
            f"Found {check.tokenizer!r}."
        )
