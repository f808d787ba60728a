"""Scripted stand-ins for the scribe task's models: refiner, strategist, and a student with wrong habits.

They let the whole pipeline run without a key. `refine` edits the draft as little as it can,
so that the student's own valid phrasing survives; `write_draft` is what pre-training learns
from and what tests feed the refiner with.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from agents.scribe.rules import RULES, SECTIONS, canonical, medication, read_note, verify
from agents.scribe.transcripts import Facts, read_transcript, suggested
from schemas.case import Message, Violation

# Rule -> (mistake, guardrail) in several wordings; none names an item that a note could hold.
GUARDRAILS: dict[str, tuple[tuple[str, str], ...]] = {
    "stated_diagnoses": (
        ("Inferred a diagnosis from a drug.", "List only diagnoses that are stated."),
        ("Took a drug as proof of an illness.", "A drug is not a diagnosis: write what is stated."),
        ("Added an illness nobody named.", "Never infer a diagnosis from a drug."),
    ),
    "exact_doses": (
        ("Changed or dropped a unit.", "Copy each dose with its unit."),
        ("Wrote an inexact dose.", "Give drug, number and unit exactly as stated."),
    ),
    "no_negated": (
        ("Listed what was denied.", "Leave out symptoms that are denied."),
        ("Read a negation as a report.", "A denied symptom is not a symptom: list what is reported."),
    ),
    "complete": (
        ("Left out something stated.", "Fill each line with all that is stated."),
        ("Gave an incomplete note.", "Leave out nothing that is stated."),
    ),
    "order": (
        ("Broke the order or repeated an item.", "Keep the order of mention, each item once."),
        ("Listed an item again or too late.", "List each item once, as first mentioned."),
    ),
    "none_where_empty": (
        ("Left a line blank or marked it wrongly.", "Say so on a line that has nothing to list."),
        ("Did not mark an empty line.", "Never leave a line blank."),
    ),
}
HABITS = {"infers": 0.8, "negates": 0.8, "drops_units": 0.75, "repeats": 0.1, "blanks": 0.3}
_CURES = {
    "stated_diagnoses": ("infers",),
    "exact_doses": ("drops_units",),
    "no_negated": ("negates",),
    "complete": ("blanks",),
    "order": ("repeats",),
    "none_where_empty": ("blanks",),
}
_SEVERITIES = ("critical", "major", "minor")


@dataclass(frozen=True)
class Phrasing:
    """How a note is worded; every combination is valid."""

    separator: str = ", "
    capitals: bool = False
    daily: bool = False
    stop: bool = False  # a full stop after `none`


def refine(messages: Sequence[Message], draft: str, violations: Sequence[Violation]) -> str:
    """Returns the draft with the named rules repaired, those of the highest severity only.

    What the violations do not name keeps the student's wording, so three rounds repair any draft.
    """
    if not violations:
        return draft
    severity = min((v.severity for v in violations), key=_SEVERITIES.index)
    broken = {v.rule for v in violations if v.severity == severity}
    facts = _facts(messages)
    note = read_note(draft)
    phrasing = _phrasing_of(draft)
    if not note.lines:
        return write_note(facts, phrasing)
    stated = _stated(facts, phrasing)
    marked = {line.section: line.none for line in reversed(note.lines)}
    written: dict[str, list[str]] = {line.section: [] for line in note.lines}
    for line in note.lines:
        written[line.section] += line.items
    if "complete" in broken:
        marked = {section: "" if stated[section] else marked.get(section, "none") for section in SECTIONS}
        written = {section: written.get(section, []) for section in SECTIONS}
    elif "order" in broken:
        written = {section: written[section] for section in SECTIONS if section in written}
    written = {section: _repair(section, items, stated[section], broken) for section, items in written.items()}
    strays = () if "complete" in broken else note.strays
    lines = [
        f"{section}: {_listed(items, marked.get(section, ''), stated[section], broken, phrasing)}".rstrip()
        for section, items in written.items()
    ]
    return "\n".join([*lines, *strays])


def strategize(messages: Sequence[Message], drafts: Sequence[str], violations: Sequence[Violation]) -> tuple[str, str]:
    """Returns (mistake, guardrail) for one of the most severe rules broken, the same for the same prompt.

    Both are empty when nothing was broken: an attempt that passed at once teaches no strategy.
    """
    if not violations:
        return "", ""
    severity = min((v.severity for v in violations), key=_SEVERITIES.index)
    broken = [rule.id for rule in RULES if any(v.rule == rule.id and v.severity == severity for v in violations)]
    prompt = next((m.text() for m in reversed(messages) if m.role == "user"), "")
    number = int.from_bytes(hashlib.sha256(prompt.encode("utf-8", "replace")).digest()[:8], "big")
    wordings = GUARDRAILS[broken[number % len(broken)]]
    return wordings[number // len(broken) % len(wordings)]


def write_note(facts: Facts, phrasing: Phrasing = Phrasing()) -> str:
    """Returns the note that passes, in one of the valid phrasings."""
    stated = _stated(facts, phrasing)
    return "\n".join(f"{section}: {_joined(list(stated[section].values()), phrasing)}" for section in SECTIONS)


def write_draft(facts: Facts, rng: random.Random, obeyed: str = "") -> str:
    """Returns a note by a scribe with wrong habits, free of those that break the rule `obeyed`."""
    has = {habit: rng.random() < rate for habit, rate in HABITS.items()}
    has |= dict.fromkeys(_CURES.get(obeyed, ()), False)
    phrasing = draw_phrasing(rng)
    section_items = {section: list(items.values()) for section, items in _stated(facts, phrasing).items()}
    if has["infers"]:
        inferred = [suggested(drug) for drug, _ in facts.medications]
        named = dict.fromkeys([*facts.diagnoses, *(name for name in inferred if name)])
        section_items["Diagnoses"] = [_cased(name, phrasing) for name in named]
    if has["negates"]:
        section_items["Symptoms"] += [_cased(name, phrasing) for name in facts.negated]
    if has["drops_units"]:
        bare = [f"{drug} {dose.split()[0]}" for drug, dose in facts.medications]
        section_items["Medications"] = [_cased(item, phrasing) for item in bare]
    if has["repeats"] and len(facts.symptoms) > 1:
        section_items["Symptoms"].append(_cased(facts.symptoms[0], phrasing))
    lines = {section: f"{section}: {_joined(items, phrasing)}" for section, items in section_items.items()}
    if has["blanks"]:
        blank = rng.choice(SECTIONS)
        lines[blank] = f"{blank}:"
    return "\n".join(lines.values())


def draw_phrasing(rng: random.Random) -> Phrasing:
    """Draws one of the valid phrasings."""
    return Phrasing(rng.choice((", ", "; ")), rng.random() < 0.5, rng.random() < 0.5, rng.random() < 0.5)


def passes(messages: Sequence[Message], answer: str) -> bool:
    """Says whether an answer breaks no rule."""
    return not verify(messages, answer)


def _facts(messages: Sequence[Message]) -> Facts:
    return read_transcript(next((m.text() for m in reversed(messages) if m.role == "user"), ""))


def _stated(facts: Facts, phrasing: Phrasing) -> dict[str, dict[str, str]]:
    """Returns, by section, what must be listed: key -> wording, in order of mention."""
    daily = " daily" if phrasing.daily else ""
    drugs = {drug.lower(): f"{drug} {dose}{daily}" for drug, dose in reversed(facts.medications)}
    order = dict.fromkeys(drug.lower() for drug, _ in facts.medications)
    named = {
        "Diagnoses": {canonical(name): name for name in facts.diagnoses},
        "Medications": {key: drugs[key] for key in order},
        "Symptoms": {canonical(name): name for name in facts.symptoms},
    }
    return {section: {key: _cased(item, phrasing) for key, item in items.items()} for section, items in named.items()}


def _key(section: str, item: str) -> str:
    return medication(item)[0] if section == "Medications" else canonical(item)


def _repair(section: str, items: Sequence[str], stated: dict[str, str], broken: set[str]) -> list[str]:
    """Applies to one section the rules in `broken`: remove, rewrite, insert, sort."""
    kept = list(items)
    extra_rule = {"Diagnoses": "stated_diagnoses", "Medications": "exact_doses", "Symptoms": "no_negated"}[section]
    if extra_rule in broken:
        kept = [item for item in kept if _key(section, item) in stated]
        if section == "Medications":
            wordings = [stated[_key(section, item)] for item in kept]
            kept = [i if medication(i) == medication(w) else w for i, w in zip(kept, wordings, strict=True)]
    rank = {key: position for position, key in enumerate(stated)}
    if "complete" in broken:
        present = {_key(section, item) for item in kept}
        for key, wording in stated.items():
            if key not in present:
                later = (i for i, item in enumerate(kept) if rank.get(_key(section, item), len(rank)) > rank[key])
                kept.insert(next(later, len(kept)), wording)
    if "order" in broken:
        first = {_key(section, item): item for item in reversed(kept)}
        kept = [first[key] for key in sorted(first, key=lambda key: (rank.get(key, len(rank)), key))]
    return kept


def _listed(items: list[str], mark: str, stated: dict[str, str], broken: set[str], phrasing: Phrasing) -> str:
    """Returns a section's text; `none` appears where the rule asks for it or an edit emptied the line."""
    if "none_where_empty" in broken:
        mark = "" if items or stated else "none"
    elif not items and not stated and broken & {"stated_diagnoses", "exact_doses", "no_negated"}:
        mark = mark or "none"
    shown = items + ([mark] if mark else [])
    return _joined(shown, phrasing) if shown else ""


def _joined(items: list[str], phrasing: Phrasing) -> str:
    if not items or [item.lower() for item in items] == ["none"]:
        return _cased("none", phrasing) + ("." if phrasing.stop else "")
    return phrasing.separator.join(items)


def _cased(item: str, phrasing: Phrasing) -> str:
    return item[:1].upper() + item[1:] if phrasing.capitals else item


def _phrasing_of(draft: str) -> Phrasing:
    """Guesses a draft's phrasing, so that what is added reads like the rest."""
    first = next((line.items[0] for line in read_note(draft).lines if line.items), "")
    return Phrasing("; " if ";" in draft else ", ", first[:1].isupper(), " daily" in draft.lower(), "one." in draft)
