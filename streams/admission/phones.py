"""Phone numbers as a country writes them at home, by the rules of libphonenumber; streams.admission.personal asks.

A number counts where it is one that the region gives out, in just the groups that the region writes it in: so doses,
dates, prices and identifiers, which are grouped otherwise or not at all, stay.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache

import phonenumbers
from phonenumbers import NumberParseException, PhoneNumberFormat

FEWEST_DIGITS, MOST_DIGITS = 8, 13
_GROUPS = re.compile(r"[0-9]+")


def supported_regions() -> frozenset[str]:
    """Returns the codes of all regions that are known: ISO 3166, such as DE."""
    return frozenset(phonenumbers.SUPPORTED_REGIONS)


@lru_cache(maxsize=1 << 16)  # parsing takes some 400 µs over a few regions, and logs repeat their numbers
def national_number(value: str, regions: tuple[str, ...]) -> str:
    """Returns the international digits of a number that one of the regions writes so, "" for anything else.

    One that begins with + and a country's code needs no region and may be grouped in any way.
    """
    groups = _GROUPS.findall(value)
    if len(groups) < 2:
        return ""
    if value.startswith("+"):
        return _abroad(value)
    digits = "".join(groups)
    for region in regions:
        if not digits.startswith(_leading(region)):
            continue
        try:
            number = phonenumbers.parse(value, region)
        except NumberParseException:
            continue
        if phonenumbers.is_valid_number_for_region(number, region):
            written = phonenumbers.format_number(number, PhoneNumberFormat.NATIONAL)
            if _GROUPS.findall(written) == groups:
                return f"{number.country_code}{phonenumbers.national_significant_number(number)}"
    return ""


@cache
def _leading(region: str) -> str:
    """Returns what a region's numbers begin with at home, mostly 0; "" where they begin with anything."""
    example = phonenumbers.example_number(region)
    metadata = phonenumbers.PhoneMetadata.metadata_for_region(region)
    prefix = metadata.national_prefix if metadata is not None else None
    if example is None or not prefix:
        return ""
    written = "".join(_GROUPS.findall(phonenumbers.format_number(example, PhoneNumberFormat.NATIONAL)))
    return str(prefix) if written.startswith(prefix) else ""


def _abroad(value: str) -> str:
    try:
        number = phonenumbers.parse(value, None)
    except NumberParseException:
        return ""
    if not phonenumbers.is_valid_number(number):
        return ""
    return f"{number.country_code}{phonenumbers.national_significant_number(number)}"
