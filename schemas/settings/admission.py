"""What of a task's records becomes a case: which ones, how many, and what is taken out of their text."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from schemas.settings.section import Section, Share

PersonalKind = Literal["email", "phone", "card", "ssn", "ip", "name"]


class Redact(Section, frozen=True):
    """Which personal values are replaced by placeholders before anything of a record is written."""

    # On: what has been written can never be taken back from every copy, and what is missing can be read again.
    kinds: tuple[PersonalKind, ...] = ("email", "phone", "card", "ssn", "ip")  # "name" needs the extra `presidio`
    # Whose phone numbers count without a word that says so, as they are written at home; country codes (ISO 3166).
    phone_regions: tuple[Annotated[str, Meta(pattern=r"^[A-Z]{2}$")], ...] = ("GB", "DE", "FR", "NL", "AU", "JP")
    language: Annotated[str, Meta(pattern=r"^[a-z]{2}$")] = "en"  # of names
    name_model: str = "en_core_web_sm"  # a spaCy package that is installed; none is ever downloaded
    name_score: Share = 0.5  # of Presidio; less certain names stay


class NearDuplicates(Section, frozen=True):
    """Whether prompts that almost repeat an earlier one are dropped."""

    # Off: how often a prompt is asked is information, and prompts made from a template all look alike.
    threshold: Share = 0.0  # share of text in common (Jaccard, of runs of 8 bytes); 0: off, 0.85 is a good start
