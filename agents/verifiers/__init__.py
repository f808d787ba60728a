"""The checks that need no model: rules decided by a program, as configured in `check` of a rule.

One module a kind; schemas.settings.verifiers says what each is told. Answers are hostile: every pattern of a user's is
given agents.verifiers.patterns.TIME_LIMIT_S, everything else takes time in proportion to the text.
"""

from __future__ import annotations

from collections.abc import Sequence

from agents.verifiers.finding import Finding
from agents.verifiers.json_schema import check_json
from agents.verifiers.length import check_length
from agents.verifiers.patterns import check_patterns
from agents.verifiers.python import call, load_verifier
from agents.verifiers.reference import Record, check_exact, check_numeric
from agents.verifiers.sections import check_sections
from agents.verifiers.source import check_source
from agents.verifiers.tool_calls import check_calls
from schemas.case import Message, Violation
from schemas.settings import Rule
from schemas.settings.verifiers import (
    Check,
    ExactCheck,
    JsonCheck,
    LengthCheck,
    NumericCheck,
    PythonCheck,
    RegexCheck,
    SectionsCheck,
    SourceCheck,
    ToolCallsCheck,
)

MOST_PER_RULE = 8  # violations told; who repairs the answer learns no more from the ninth
_LONGEST = 300  # characters of a quote or a reason


def run_checks(
    rules: Sequence[Rule], messages: Sequence[Message], answer: str, record: Record = None
) -> list[Violation]:
    """Returns the violations of the rules that have a check, in the rules' order; each quotes the answer where it can.

    Blocks: call it in a thread. Raises SettingsError for a function that cannot be loaded.
    """
    return [
        Violation(rule.id, rule.severity, hinge[:_LONGEST], why[:_LONGEST], fix[:_LONGEST] or rule.text)
        for rule in rules
        if rule.check is not None
        for hinge, why, fix in find(rule.check, messages, answer, record)[:MOST_PER_RULE]
    ]


def find(check: Check, messages: Sequence[Message], answer: str, record: Record = None) -> list[Finding]:
    """Returns what one check objects to."""
    match check:
        case JsonCheck():
            return check_json(check, answer, MOST_PER_RULE)
        case RegexCheck():
            return check_patterns(check, answer)
        case LengthCheck():
            return check_length(check, answer)
        case ExactCheck():
            return check_exact(check, messages, answer, record)
        case NumericCheck():
            return check_numeric(check, messages, answer, record)
        case SectionsCheck():
            return check_sections(check, answer)
        case SourceCheck():
            return check_source(check, messages, answer)
        case ToolCallsCheck():
            return check_calls(check, answer, record)
        case PythonCheck():
            return call(check, messages, answer)


def load_functions(rules: Sequence[Rule]) -> None:
    """Loads the functions that rules name, so that whoever starts learns what is missing; raises SettingsError."""
    for rule in rules:
        if isinstance(rule.check, PythonCheck):
            load_verifier(rule.check.function)
