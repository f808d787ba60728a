"""Required sections: headings an answer must have, in whatever way headings are written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from agents.verifiers.finding import Finding
from schemas.settings.verifiers import SectionsCheck


class Section(NamedTuple):
    """A heading of the answer; `name` is plain, `line` as it stands."""

    name: str
    line: str
    text: str  # what follows, up to the next section


def check_sections(check: SectionsCheck, answer: str) -> list[Finding]:
    """Finds sections that are missing, empty, out of order or not wanted."""
    found: list[Finding] = []
    before, present = read_sections(answer, check.required)
    names = [section.name.casefold() for section in present]
    wanted = [name.casefold() for name in check.required]
    for name in check.required:
        if name.casefold() not in names:
            found.append(Finding("", f"the section {name} is missing", f"Add the section {name}."))
    for section in present:
        if section.name.casefold() not in wanted:
            if check.only:
                found.append(Finding(section.line, f"no section {section.name} is wanted", "Leave this section out."))
        elif not section.text.strip() and not check.may_be_empty:
            why = f"the section {section.name} is empty"
            found.append(Finding(section.line, why, f"Fill the section {section.name}."))
    if check.ordered:
        found += _out_of_order([s for s in present if s.name.casefold() in wanted], wanted, check.required)
    if check.only and before.strip():
        first = next(line.strip() for line in before.splitlines() if line.strip())
        found.append(Finding(first, "text stands before the first section", "Leave it out."))
    return found


def read_sections(answer: str, known: Iterable[str]) -> tuple[str, list[Section]]:
    """Returns the text before the first section, and the sections: those `known`, and any Markdown heading."""
    names = {name.casefold() for name in known}
    before: list[str] = []
    sections: list[tuple[str, str, list[str]]] = []
    for line in answer.splitlines():
        heading = _heading(line, names)
        if heading is not None:
            name, rest = heading
            sections.append((name, line.strip(), [rest]))
        else:
            (sections[-1][2] if sections else before).append(line)
    return "\n".join(before), [Section(name, line, "\n".join(text)) for name, line, text in sections]


def _heading(line: str, names: set[str]) -> tuple[str, str] | None:
    """Reads a line as a heading: (its name, what follows on the same line); None where it is none."""
    plain = line.strip()
    is_markdown = plain.startswith("#")
    unmarked = plain.lstrip("#").strip()
    name, colon, rest = unmarked.partition(":")
    name, rest = name.strip("*_ \t"), rest.strip().removeprefix("**").removeprefix("__").strip()
    if name.casefold() in names and (colon or not rest):
        return name, rest
    return (unmarked.strip("*_: \t"), "") if is_markdown and unmarked else None


def _out_of_order(present: list[Section], wanted: list[str], names: tuple[str, ...]) -> list[Finding]:
    """Finds the first section that stands after one that should follow it."""
    latest = -1
    for section in present:
        position = wanted.index(section.name.casefold())
        if position < latest:
            order = ", ".join(names)
            return [Finding(section.line, f"the section {section.name} is out of order", f"Keep the order {order}.")]
        latest = position
    return []
