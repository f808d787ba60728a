"""Verifiers that are Python functions: of a whole rubric (`rubric.verifier`) or of one rule (`kind = "python"`)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import entry_points

from agents.verifiers.finding import Finding
from schemas.case import Message, Violation
from schemas.errors import SettingsError
from schemas.settings.verifiers import PythonCheck

GROUP = "goldstream.verifiers"  # the entry point group a package of the user's may name its functions in

Verifier = Callable[..., Sequence[Violation | str]]


@cache
def load_verifier(name: str) -> Callable[..., list[Violation]]:
    """Returns the function "package.module:function", or the one that an installed package names so.

    Raises SettingsError where there is none.
    """
    module, colon, function = name.partition(":")
    try:
        if colon:
            found = getattr(importlib.import_module(module), function)
        else:
            (entry,) = entry_points(group=GROUP, name=name) or [None]
            if entry is None:
                known = ", ".join(sorted(entry_points(group=GROUP).names)) or "none"
                raise SettingsError(
                    f"verifier {name!r} is no package.module:function, and no installed package names it in its entry "
                    f"points of {GROUP}; known there: {known}."
                )
            found = entry.load()
    except (ImportError, AttributeError, ValueError) as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError(
            f"rubric.verifier {name!r} cannot be loaded: {error}. Expected package.module:function, importable from "
            "where Goldstream runs."
        ) from error
    verifier: Callable[..., list[Violation]] = found
    return verifier


def call(check: PythonCheck, messages: Sequence[Message], answer: str) -> list[Finding]:
    """Calls the function of a rule, in a thread of its own; it returns violations, or texts that say why.

    Whatever rule its violations name, they are of the rule that called it. Raises SettingsError for other results.
    """
    verifier: Verifier = load_verifier(check.function)
    found: list[Finding] = []
    for one in verifier(messages, answer, **check.options):
        if isinstance(one, Violation):
            found.append(Finding(one.hinge, one.why, one.fix))
        elif isinstance(one, str):
            found.append(Finding("", one))
        else:
            raise SettingsError(
                f"verifier {check.function!r} returned a {type(one).__name__}; expected a list of "
                "schemas.case.Violation, or of texts that say what is wrong."
            )
    return found
