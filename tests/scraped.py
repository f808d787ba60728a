"""Scrapes of a running factory: found through the files that tell Prometheus, parsed by its own library."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterable
from typing import Any

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from schemas.settings import Settings

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]  # (name with suffix, labels) -> value


def targets(settings: Settings) -> dict[str, str]:
    """Returns process -> address, as Prometheus's file_sd would find them."""
    found = {}
    for path in sorted((settings.state / "run").glob("*.metrics.json")):
        for group in msgspec.json.decode(path.read_bytes()):
            found[group["labels"]["process"]] = group["targets"][0]
    return found


def scrape_all(settings: Settings) -> dict[str, str]:
    """Returns process -> what its /metrics says now; without those that do not answer."""
    found = {}
    for process, address in targets(settings).items():
        try:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
                found[process] = answer.read().decode()
        except OSError:
            continue
    return found


def series(text: str) -> Series:
    """Returns the samples of a scrape."""
    families = text_string_to_metric_families(text)
    return {(sample.name, frozenset(sample.labels.items())): sample.value for one in families for sample in one.samples}


def total(found: Series, name: str, **labels: str) -> float:
    """Returns the sum of a name's series that carry these labels."""
    return sum(value for (one, has), value in found.items() if one == name and set(labels.items()) <= has)


def names(found: Series) -> set[str]:
    """Returns our families that have a series."""
    return {_family(name) for name, _ in found if name.startswith("goldstream_")}


def _family(name: str) -> str:
    for suffix in ("_bucket", "_count", "_sum"):
        if name.endswith(suffix) and "_call_seconds" in name:
            return name.removesuffix(suffix)
    return name.removesuffix("_total")


def family_names(families: Iterable[Any]) -> set[str]:
    """Returns the names of families."""
    return {family.name for family in families}
