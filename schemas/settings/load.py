"""Reads goldstream.toml, the environment and the command line into Settings."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from schemas.errors import SettingsError
from schemas.settings.check import check
from schemas.settings.mistakes import readable
from schemas.settings.root import Settings
from schemas.settings.rubric_file import with_rubric


def load_settings(
    path: Path | None = None, overrides: Iterable[str] = (), environ: Mapping[str, str] = os.environ
) -> Settings:
    """Reads settings from `path` (default ./goldstream.toml if there), the environment and `overrides`.

    `overrides` are "section.key=value" texts. Raises SettingsError naming the key, what was found and expected.
    """
    chosen = path or Path(environ.get("GOLDSTREAM_CONFIG", "goldstream.toml"))
    table: dict[str, Any] = {}
    if chosen.exists():
        try:
            table = tomllib.loads(chosen.read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{chosen} is not valid TOML: {error}. Mend that line and run again.") from error
    elif path is not None:
        raise SettingsError(f"settings file {path} does not exist. `goldstream init` writes one to start from.")
    texts: dict[str, Any] = {}
    for name, value in environ.items():
        if name.startswith("GOLDSTREAM_") and "__" in name:
            _put(texts, name.removeprefix("GOLDSTREAM_").lower().split("__"), value)
    if "GOLDSTREAM_STATE_DIR" in environ:
        _put(texts, ["state_dir"], environ["GOLDSTREAM_STATE_DIR"])
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise SettingsError(f"--set {override!r}: expected section.key=value, for example kafka.partitions=8")
        _put(texts, key.split("."), value)
    _merge(table, texts)
    tasks = table.get("tasks")
    for task in tasks.values() if isinstance(tasks, dict) else ():
        if isinstance(task, dict):
            with_rubric(task, chosen.parent)
    try:
        # Texts from flags and the environment need lax conversion; TOML's own types pass through it unchanged.
        settings = msgspec.convert(table, Settings, strict=not texts)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{chosen}: {readable(str(error))}") from error
    check(settings, chosen)
    return settings


def _put(table: dict[str, Any], keys: list[str], value: str) -> None:
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise SettingsError(f"{'.'.join(keys)}: {key} is set to a value elsewhere and cannot hold keys too")
    if value[:1] in "[{" and value[-1:] in "]}":
        try:
            table[keys[-1]] = msgspec.json.decode(value)
            return
        except msgspec.DecodeError:
            pass
    table[keys[-1]] = value


def _merge(table: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(table.get(key), dict):
            _merge(table[key], value)
        else:
            table[key] = value
