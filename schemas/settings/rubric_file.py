"""Rubrics in TOML files: reading one, writing one, and the texts kept by version in state/rubrics.

A rubric stands in goldstream.toml, or in a file of its own (`rubric = "rubric.toml"`), which `goldstream replay`
reads too. Gold rows carry a rubric's version; the kept text says what that was.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from schemas.errors import SettingsError
from schemas.settings.check_rubric import check_rubric
from schemas.settings.mistakes import readable
from schemas.settings.rubric import Rubric, without_defaults

VERSION = re.compile(r"[0-9a-f]{12}")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def read_rubric(path: Path) -> Rubric:
    """Reads a rubric file; raises SettingsError with the key, what was found and what is expected."""
    try:
        rubric = msgspec.convert(read_table(path), Rubric)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{path}: {readable(str(error))}") from error
    check_rubric(rubric, f"{path}: the rubric")
    return rubric


def read_table(path: Path) -> dict[str, Any]:
    """Returns a rubric file as plain data, with the JSON Schemas it names in it."""
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"rubric file {path} does not exist. Paths are taken from the settings' folder.") from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"rubric file {path} cannot be read: {error}") from error
    if "tasks" in table:
        raise SettingsError(
            f"{path} is a settings file; expected a rubric alone: what stands below [tasks.NAME.rubric], without that "
            "heading, so that it begins with rules = [...] or pass_mark."
        )
    with_schemas(table, path.parent)
    return table


def with_rubric(task: dict[str, Any], folder: Path) -> None:
    """Puts the rubric that a task's table names by its file into that table; keys beside `file` override it."""
    rubric = task.get("rubric")
    if isinstance(rubric, str):
        rubric = {"file": rubric}
    if not isinstance(rubric, dict):
        return
    over = {key: value for key, value in rubric.items() if key != "file"}
    with_schemas(over, folder)
    if isinstance(rubric.get("file"), str):
        over = read_table(folder / rubric["file"]) | over
    elif "file" in rubric:
        over["file"] = rubric["file"]  # an unknown key, as any other of the wrong type
    task["rubric"] = over


def with_schemas(table: dict[str, Any], folder: Path) -> None:
    """Replaces the JSON text or file of a check's schema by the schema itself; all else is left as it is."""
    rules = table.get("rules")
    for rule in rules if isinstance(rules, list) else ():
        check = rule.get("check") if isinstance(rule, dict) else None
        if not isinstance(check, dict) or check.get("kind") != "json":
            continue
        text, what = check.get("schema"), "schema"
        if isinstance(name := check.get("schema_file"), str):
            what = f"schema_file {folder / name}"
            try:
                text = (folder / name).read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"rule {rule.get('id')!r}: {what} cannot be read: {error}") from error
            del check["schema_file"]
        if isinstance(text, str):
            try:
                check["schema"] = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise SettingsError(f"rule {rule.get('id')!r}: {what} is not JSON: {error}") from error


def rubric_toml(rubric: Rubric) -> str:
    """Returns a rubric as TOML that `read_rubric` reads as the same version."""
    table = without_defaults(rubric)
    rules = table.pop("rules", [])
    lines = [f"{key} = {_toml(value)}" for key, value in table.items()]
    for rule in rules:
        if rule.get("check", {}).get("schema"):  # JSON has nulls, TOML has none
            rule["check"]["schema"] = json.dumps(rule["check"]["schema"], ensure_ascii=False)
        lines += ["", "[[rules]]", *(f"{key} = {_toml(value)}" for key, value in rule.items())]
    return "\n".join(lines) + "\n"


def keep_rubric(state: Path, rubric: Rubric) -> Path:
    """Writes a rubric's text under its version, unless it is there; returns the file."""
    path = kept_path(state, rubric.version())
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(rubric_toml(rubric))
        os.replace(unfinished, path)
    return path


def kept_path(state: Path, version: str) -> Path:
    """Returns where a rubric version's text is kept; raises SettingsError for what is no version."""
    if not VERSION.fullmatch(version):
        raise SettingsError(f"{version[:40]!r} is no rubric version; expected 12 characters such as 1f0c7a9b3d5e.")
    return state / "rubrics" / f"{version}.toml"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(held)}" for key, held in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    render: Callable[[Any], str] = json.dumps if isinstance(value, bool) else repr
    return render(value)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _toml(key)
