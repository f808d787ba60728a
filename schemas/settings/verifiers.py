"""What a rule can be checked by without a model: the `check` table of a rule, one type per kind.

agents.verifiers carries them out. Patterns are those of the `regex` package and are given TIME_LIMIT_S.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from schemas.settings.section import NotNegative, Section

Count = Annotated[int, Meta(ge=0)]
Entity = Literal["numbers", "doses", "dates", "names"]


class JsonCheck(Section, frozen=True, tag_field="kind", tag="json"):
    """The answer is JSON, and obeys a JSON Schema where one is given."""

    schema: dict[str, Any] = {}  # in TOML also as JSON text, or schema_file = "path" beside the rubric
    code_block: bool = False  # whether ```json around it is allowed


class RegexCheck(Section, frozen=True, tag_field="kind", tag="regex"):
    """Every pattern of `must` is found in the answer, none of `must_not` is."""

    must: tuple[str, ...] = ()
    must_not: tuple[str, ...] = ()
    ignore_case: bool = False


class LengthCheck(Section, frozen=True, tag_field="kind", tag="length"):
    """The answer's length lies within limits."""

    min_characters: Count | None = None
    max_characters: Count | None = None
    min_words: Count | None = None
    max_words: Count | None = None
    min_lines: Count | None = None  # empty lines do not count
    max_lines: Count | None = None
    min_tokens: Count | None = None
    max_tokens: Count | None = None
    tokenizer: str = ""  # a model folder with tokenizer.json, to count tokens by


class ExactCheck(Section, frozen=True, tag_field="kind", tag="exact"):
    """The answer, or the part that a pattern takes out of it, is a reference text."""

    value: str | None = None  # the reference itself
    prompt_pattern: str = ""  # or where the prompt states it: group 1, else the whole match; the last match counts
    record: str = ""  # or a JMESPath expression on what the log record told besides: schemas.record
    answer_pattern: str = ""  # default: the whole answer
    ignore_case: bool = False
    ignore_space: bool = True  # white space at the ends never counts; this is about that between words


class NumericCheck(Section, frozen=True, tag_field="kind", tag="numeric"):
    """A number in the answer is the reference number, within a tolerance."""

    value: float | None = None
    prompt_pattern: str = ""
    record: str = ""
    answer_pattern: str = ""  # default: the last number of the answer
    tolerance: NotNegative = 0.0
    relative_tolerance: NotNegative = 0.0  # of the reference; the wider of both holds


class SectionsCheck(Section, frozen=True, tag_field="kind", tag="sections"):
    """The answer has these headings: `Name:` or a Markdown heading or bold line, each with something below it."""

    required: Annotated[tuple[str, ...], Meta(min_length=1)]
    ordered: bool = True
    only: bool = False  # no other Markdown heading, and nothing before the first section
    may_be_empty: bool = False


class SourceCheck(Section, frozen=True, tag_field="kind", tag="from_source"):
    """Numbers, doses, dates or names in the answer all occur in the conversation."""

    entities: Annotated[tuple[Entity, ...], Meta(min_length=1)] = ("numbers", "doses", "dates", "names")
    allow: tuple[str, ...] = ()  # what may be said all the same


class ToolCallsCheck(Section, frozen=True, tag_field="kind", tag="tool_calls"):
    """Every call of a tool names one that the prompt offered, with arguments that obey its schema."""

    required: bool = False  # the answer calls at least one
    only: tuple[str, ...] = ()  # of these alone, though the prompt offered more
    most: Count | None = None  # calls in one answer


class PythonCheck(Section, frozen=True, tag_field="kind", tag="python"):
    """A function of yours, (messages, answer, **options) -> violations; the rule is this one."""

    function: str  # "package.module:function", or a name of the entry point group goldstream.verifiers
    options: dict[str, Any] = {}


Check = (
    JsonCheck
    | RegexCheck
    | LengthCheck
    | ExactCheck
    | NumericCheck
    | SectionsCheck
    | SourceCheck
    | ToolCallsCheck
    | PythonCheck
)
KINDS = ("json", "regex", "length", "exact", "numeric", "sections", "from_source", "tool_calls", "python")
