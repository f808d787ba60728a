"""The judge of the scribe task: six rules, one point each, checked by a program.

`verify` reads the transcript out of the prompt and the note out of the answer and returns what
is wrong, each with the quoted span and a fix a refiner can act on. Several phrasings are
valid: case, separators, a full stop, "daily", common synonyms, `none` or `None.`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from agents.scribe.transcripts import Facts, read_transcript
from schemas.case import Message, Severity, Violation

MAX_ANSWER_CHARS = 2000  # a note is under 300; beyond this nothing is read
MAX_PER_RULE = 8


@dataclass(frozen=True)
class Rule:
    """One rule of the task, worth one point."""

    id: str
    text: str
    severity: Severity


RULES = (
    Rule("stated_diagnoses", "List only diagnoses the transcript states; a medication does not prove one.", "critical"),
    Rule("exact_doses", "Give each medication with its dose and unit exactly as stated.", "critical"),
    Rule("no_negated", "List only symptoms the patient has; leave out those denied.", "major"),
    Rule("complete", "Write the three lines, nothing else, and leave out nothing that is stated.", "major"),
    Rule("order", "Keep the order of mention and list each item once.", "minor"),
    Rule("none_where_empty", "Write `none` on a line that has nothing to list, and only there.", "minor"),
)
SECTIONS = ("Diagnoses", "Medications", "Symptoms")
SYNONYMS = {
    "diabetes type 2": "type 2 diabetes",
    "type 2 diabetes mellitus": "type 2 diabetes",
    "t2dm": "type 2 diabetes",
    "high blood pressure": "hypertension",
    "hyperlipidemia": "high cholesterol",
    "underactive thyroid": "hypothyroidism",
    "acid reflux": "reflux",
    "gerd": "reflux",
    "afib": "atrial fibrillation",
    "breathlessness": "shortness of breath",
    "tiredness": "fatigue",
    "feeling sick": "nausea",
    "swollen legs": "leg swelling",
    "trouble sleeping": "insomnia",
}


@dataclass(frozen=True)
class Line:
    """One section of a note: its heading, the items as written and whether it says `none`."""

    section: str
    heading: str  # as written
    items: tuple[str, ...]
    none: str = ""  # the word as written, "" where the line does not say it


@dataclass(frozen=True)
class Note:
    """An answer taken apart: its sections as they stand and the lines that belong to none."""

    lines: tuple[Line, ...]
    strays: tuple[str, ...] = ()

    def section(self, name: str) -> Line | None:
        """Returns the first line with this heading."""
        return next((line for line in self.lines if line.section == name), None)


def verify(messages: Sequence[Message], answer: str) -> list[Violation]:
    """Returns every violation in an answer to the last user message; an empty list is a pass, 6 of 6.

    Never raises. An answer that is no note at all breaks every rule.
    """
    prompt = next((m.text() for m in reversed(messages) if m.role == "user"), "")
    facts = read_transcript(prompt)
    note = read_note(answer)
    if not note.lines:
        why = "the answer is not a note of three lines"
        fix = "Write three lines: `Diagnoses:`, `Medications:` and `Symptoms:`."
        return [Violation(rule.id, rule.severity, answer.strip()[:80], why, fix) for rule in RULES]
    found = [*_diagnoses(facts, note), *_doses(facts, note), *_negated(facts, note)]
    found += [*_complete(facts, note), *_order(facts, note), *_none(facts, note)]
    by_rule = [[violation for violation in found if violation.rule == rule.id] for rule in RULES]
    return [violation for group in by_rule for violation in group[:MAX_PER_RULE]]


def score(violations: Sequence[Violation]) -> int:
    """Returns the points out of six: one for each rule not broken."""
    return len(RULES) - len({violation.rule for violation in violations})


def read_note(answer: str) -> Note:
    """Takes an answer apart; text that is no note gives a Note without lines."""
    if len(answer) > MAX_ANSWER_CHARS:
        return Note((), (answer[:80],))
    lines: list[Line] = []
    strays: list[str] = []
    for raw in answer.splitlines():
        if not raw.strip():
            continue
        if match := _HEADING.match(raw):
            lines.append(_read_line(match[0].strip(), raw[match.end() :]))
        else:
            strays.append(raw.strip())
    return Note(tuple(lines), tuple(strays))


def canonical(item: str) -> str:
    """Returns an item in the transcript's words: lower case, one space, synonyms resolved."""
    plain = " ".join(item.lower().split())
    return SYNONYMS.get(plain, plain)


def medication(item: str) -> tuple[str, str]:
    """Splits a medication as written into drug and dose; "daily" is allowed, as every drug here is taken daily."""
    match = _MEDICATION.fullmatch(" ".join(item.lower().split()))
    return (match[1], match[2]) if match else (item.lower().split()[0], "")


def _read_line(heading: str, text: str) -> Line:
    section = heading.rstrip(": \t").capitalize()
    text = text.strip()
    parts = [part.strip() for part in re.split(r"[,;]", text[:-1] if text.endswith(".") else text)]
    none = next((part for part in parts if part.lower() == "none"), "")
    return Line(section, heading, tuple(part for part in parts if part and part.lower() != "none"), none)


def _violation(rule_id: str, hinge: str, why: str, fix: str) -> Violation:
    severity = next(rule.severity for rule in RULES if rule.id == rule_id)
    return Violation(rule_id, severity, hinge, why, fix)


def _items(note: Note, section: str) -> list[str]:
    return [item for line in note.lines if line.section == section for item in line.items]


def _keys(note: Note, section: str) -> list[str]:
    """Returns a section's items in the form they are compared in: drugs by name, others canonical."""
    items = _items(note, section)
    return [medication(item)[0] for item in items] if section == "Medications" else [canonical(item) for item in items]


def _stated(facts: Facts) -> dict[str, tuple[str, ...]]:
    return {
        "Diagnoses": tuple(canonical(name) for name in facts.diagnoses),
        "Medications": tuple(dict.fromkeys(drug.lower() for drug, _ in facts.medications)),
        "Symptoms": tuple(canonical(name) for name in facts.symptoms),
    }


def _diagnoses(facts: Facts, note: Note) -> Iterator[Violation]:
    for item in _items(note, "Diagnoses"):
        if canonical(item) not in _stated(facts)["Diagnoses"]:
            why = "the transcript does not state this diagnosis"
            yield _violation("stated_diagnoses", item, why, f"Remove `{item}` from Diagnoses.")


def _doses(facts: Facts, note: Note) -> Iterator[Violation]:
    doses: dict[str, list[str]] = {}
    for drug, dose in facts.medications:
        doses.setdefault(drug.lower(), []).append(dose.lower())
    for item in _items(note, "Medications"):
        drug, dose = medication(item)
        if drug not in doses:
            why = "the transcript does not name this medication"
            yield _violation("exact_doses", item, why, f"Remove `{item}` from Medications.")
        elif dose not in doses[drug]:
            stated = f"{drug} {doses[drug][0]}"
            yield _violation("exact_doses", item, f"the transcript says {stated}", f"Write `{stated}` for `{item}`.")


def _negated(facts: Facts, note: Note) -> Iterator[Violation]:
    for item in _items(note, "Symptoms"):
        if canonical(item) not in _stated(facts)["Symptoms"]:
            denied = canonical(item) in {canonical(name) for name in facts.negated}
            why = "the patient denies this symptom" if denied else "the transcript does not report this symptom"
            yield _violation("no_negated", item, why, f"Remove `{item}` from Symptoms.")


def _complete(facts: Facts, note: Note) -> Iterator[Violation]:
    stated = _stated(facts)
    full = {drug.lower(): f"{drug} {dose}" for drug, dose in reversed(facts.medications)}
    for section in SECTIONS:
        if note.section(section) is None:
            yield _violation("complete", "", f"the line {section} is missing", f"Add the line `{section}:`.")
        for key in stated[section]:
            if key not in _keys(note, section):
                yield _violation("complete", "", f"{key} is missing", f"Add `{full.get(key, key)}` to {section}.")
    for stray in note.strays:
        why = "a note has three lines and nothing else"
        yield _violation("complete", stray[:80], why, "Remove the text outside the three lines.")


def _order(facts: Facts, note: Note) -> Iterator[Violation]:
    headings = [line.section for line in note.lines]
    if headings != sorted(set(headings), key=SECTIONS.index):
        why = "the lines are out of order or double"
        fix = "Write Diagnoses, Medications and Symptoms in this order, one line each."
        yield _violation("order", note.lines[-1].heading, why, fix)
    for section in SECTIONS:
        stated = _stated(facts)[section]
        keys, items = _keys(note, section), _items(note, section)
        for position, key in enumerate(keys):
            if key in keys[:position]:
                why = "this item is listed twice"
                yield _violation("order", items[position], why, f"List `{items[position]}` once in {section}.")
        ranks = [(stated.index(key), item) for key, item in zip(keys, items, strict=True) if key in stated]
        late = next((item for (rank, item), (after, _) in pairwise(ranks) if rank > after), "")
        if late:
            why = "the transcript mentions it later"
            yield _violation("order", late, why, f"Put {section} in the order of mention.")


def _none(facts: Facts, note: Note) -> Iterator[Violation]:
    for section in SECTIONS:
        line = note.section(section)
        if line is None or (not line.items and not line.none and not _stated(facts)[section]):
            why = f"nothing is written for {section}"
            yield _violation("none_where_empty", "", why, f"Write `none` after `{section}:` if nothing is stated.")
        elif line.none and (line.items or _stated(facts)[section]):
            why = f"{section} has something to list"
            yield _violation("none_where_empty", line.none, why, f"Remove `{line.none}` from {section}.")


_HEADING = re.compile(r"[ \t]*(diagnoses|medications|symptoms)[ \t]*:", re.IGNORECASE | re.ASCII)
_MEDICATION = re.compile(r"(\S+) \(?(\d+ [^\s()]+)\)?(?: once)?(?: daily| a day| every day)?")
