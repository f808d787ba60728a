"""Taking personal values out of a case before the first write of ours.

Intake calls this between reading a record and producing its case. Session, user and split are hashed before, from the
text as it was. The same value has the same placeholder throughout a case, in messages, tools, answer and feedback, so
that what refers to what survives; another case counts anew, so that placeholders link nobody across cases.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import msgspec

from schemas.case import Case, Message
from schemas.errors import SettingsError, SetupError
from schemas.settings import Redact
from streams.admission.personal import Span, personal_spans
from streams.admission.phones import supported_regions

_OURS = re.compile(r"<(EMAIL|PHONE|CARD|SSN|IP|NAME)_(\d{1,6})>")
_IDENTIFIERS = frozenset({"id", "type", "role", "tool_call_id", "call_id", "index"})  # joined on, never spoken


class Analyzer(Protocol):
    """Finds names: Presidio's AnalyzerEngine, or a function's worth of it in a test."""

    def analyze(self, text: str, language: str, entities: Sequence[str], score_threshold: float) -> Sequence[Any]:
        """Returns objects with `start`, `end` and `score`."""
        ...


class Redactor:
    """Puts placeholders in the place of personal values, by one task's settings. Made once, used for every case."""

    def __init__(self, settings: Redact, analyzer: Analyzer | None = None) -> None:
        self._settings = settings
        self._kinds = frozenset(settings.kinds)
        unknown = sorted(set(settings.phone_regions) - supported_regions())
        if unknown:
            raise SettingsError(
                f"redact.phone_regions names {', '.join(unknown)}; expected codes of countries (ISO 3166) such as DE."
            )
        self._analyzer = (analyzer or load_analyzer(settings)) if "name" in self._kinds else None

    def redact(self, case: Case) -> Case:
        """Returns the case without personal values, and with what stands for them in `placeholders`."""
        if not self._kinds:
            return case
        given = _Placeholders(case)

        def text(value: str) -> str:
            return self._text(value, given)

        messages = tuple(_message(message, text) for message in case.messages)
        answer = _values(case.production_answer, text)
        tools = tuple(_values(tool, text, numbers=False) for tool in case.tools)
        calls = tuple(_values(call, text) for call in case.production_tool_calls)
        feedback = _values(case.feedback, text) if case.feedback else case.feedback
        params = _values(case.params, text, numbers=False) if case.params else case.params
        if not given.names:
            return case
        return msgspec.structs.replace(
            case,
            messages=messages,
            production_answer=answer,
            tools=tools,
            production_tool_calls=calls,
            feedback=feedback,
            params=params,
            placeholders=tuple(given.names),
        )

    def _text(self, text: str, given: _Placeholders) -> str:
        text = _replaced(text, personal_spans(text, self._kinds, self._settings.phone_regions), given)
        return _replaced(text, list(self._names(text)), given) if self._analyzer else text

    def _names(self, text: str) -> Iterator[Span]:
        assert self._analyzer is not None
        settings = self._settings
        found = self._analyzer.analyze(
            text=text, language=settings.language, entities=["PERSON"], score_threshold=settings.name_score
        )
        end = 0
        for name in sorted(found, key=lambda name: (name.start, -name.end)):
            value = text[name.start : name.end]
            if name.start >= end and value.strip() and "<" not in value and ">" not in value:  # not into a placeholder
                end = name.end
                yield Span(name.start, end, "name", " ".join(value.casefold().split()))


def load_analyzer(settings: Redact) -> Analyzer:
    """Returns Presidio's analyzer for one language; raises SetupError where it or its model is not installed."""
    try:
        import spacy.util
        from presidio_analyzer import AnalyzerEngine
        from presidio_analyzer.nlp_engine import NlpEngineProvider
    except ImportError as error:
        raise SetupError(
            f'redact.kinds names "name", and Presidio is not installed ({error}). Install it with '
            f"pip install '.[presidio]' in Goldstream's folder, with a spaCy model such as {settings.name_model}, or "
            'take "name" out of redact.kinds.'
        ) from error
    if not spacy.util.is_package(settings.name_model):  # Presidio would download it
        raise SetupError(
            f"redact.name_model is {settings.name_model!r}, and no such spaCy model is installed; none is downloaded "
            f"by itself. Install it: python -m spacy download {settings.name_model}"
        )
    model = {"lang_code": settings.language, "model_name": settings.name_model}
    provider = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": [model]})
    engine = provider.create_engine()
    pipeline = engine.nlp[settings.language]
    pipeline.select_pipes(enable=[name for name in pipeline.pipe_names if name in _NAMING])
    analyzer: Analyzer = AnalyzerEngine(nlp_engine=engine, supported_languages=[settings.language])
    return analyzer


_NAMING = frozenset({"tok2vec", "transformer", "ner", "entity_ruler"})  # what finds names; the rest only costs time


class _Placeholders:
    """What each value of a case is called. Numbers go on after those that the product's own text already uses."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._given: dict[tuple[str, str], str] = {}
        self._last: dict[str, int] = {}
        self.names: list[str] = []

    def of(self, span: Span) -> str:
        known = self._given.get((span.kind, span.key))
        if known:
            return known
        if not self.names:
            for kind, number in _OURS.findall(msgspec.json.encode(self._case).decode("utf-8", "replace")):
                self._last[kind] = max(int(number), self._last.get(kind, 0))
        kind = span.kind.upper()
        self._last[kind] = number = self._last.get(kind, 0) + 1
        self.names.append(f"{kind}_{number}")
        return self._given.setdefault((span.kind, span.key), f"<{kind}_{number}>")


def _replaced(text: str, spans: Sequence[Span], given: _Placeholders) -> str:
    if not spans:
        return text
    parts, past = [], 0
    for span in spans:
        parts += [text[past : span.start], given.of(span)]
        past = span.end
    return "".join([*parts, text[past:]])


def _message(message: Message, text: Callable[[str], str]) -> Message:
    if isinstance(message.content, str) and not message.tool_calls:
        content = _values(message.content, text)
        return message if content == message.content else msgspec.structs.replace(message, content=content)
    return msgspec.structs.replace(
        message, content=_values(message.content, text), tool_calls=_values(message.tool_calls, text)
    )


def _values(value: Any, text: Callable[[str], str], numbers: bool = True) -> Any:
    """Returns a value with its texts redacted; keys and identifiers stay. JSON in a text stays JSON.

    `numbers` is for data, where a number can be a card; in a schema or a setting it is a limit or a seed.
    """
    if isinstance(value, str):
        return _json_text(value, text) if value[:1] in "{[" else text(value)
    if isinstance(value, dict):
        return {key: item if key in _IDENTIFIERS else _values(item, text, numbers) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_values(item, text, numbers) for item in value]
    if numbers and isinstance(value, int) and not isinstance(value, bool) and value >= 10**11:
        redacted = text(str(value))
        return value if redacted == str(value) else redacted
    return value


def _json_text(value: str, text: Callable[[str], str]) -> str:
    """Redacts JSON in a text and keeps it JSON, which a placeholder in the place of a bare number is not."""
    redacted = text(value)
    if redacted == value or _is_json(redacted):
        return redacted
    try:
        whole = msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return redacted
    by_values = msgspec.json.encode(_values(whole, text)).decode()
    once_more = text(by_values)  # a key can say what the text beside it is
    return once_more if _is_json(once_more) else by_values


def _is_json(value: str) -> bool:
    try:
        msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
