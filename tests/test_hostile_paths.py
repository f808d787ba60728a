"""Hostile input: no id of a producer, task or adapter becomes a path."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from schemas.adapters import adapter_folder
from schemas.case import Source, coordinates_id, producer_id
from schemas.errors import AdapterError, SettingsError
from schemas.settings import load_settings

NASTY = {
    "parent folders": "../../etc/passwd",
    "absolute": "/etc/passwd",
    "backslashes": "..\\..\\windows",
    "null byte": "a\x00b",
    "newline": "abc\n",
    "long": "x" * 10_240,
    "emoji": "\U0001f4a5",
    "dots": "..",
    "dots inside": "a..b",
    "hidden": ".bashrc",
    "tilde": "~root",
    "empty": "",
    "surrogate": "\ud800",
    "percent": "%2e%2e%2f",
    "device": "a|b>c",
    "fullwidth slash": "a\uff0fb",
}


@pytest.mark.parametrize("name", NASTY.values(), ids=NASTY.keys())
def test_no_id_of_a_producer_is_a_path(name: str, tmp_path: Path) -> None:
    case_id = producer_id(name)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}", case_id)
    assert ".." not in case_id
    assert (tmp_path / case_id).resolve().parent == tmp_path.resolve()
    assert producer_id(name) == case_id, "the same id again is the same case"
    assert len({producer_id(other) for other in NASTY.values()}) == len(NASTY)
    source = Source(cluster="c", topic="logs", partition=0, offset=0)
    assert re.fullmatch(r"at-[0-9a-f]{32}", coordinates_id(source))


@pytest.mark.parametrize("name", NASTY.values(), ids=NASTY.keys())
def test_no_name_of_a_task_or_an_adapter_is_a_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no adapter version"):
        adapter_folder(tmp_path, "toy", name)
    if "\ud800" in name or not name:
        return  # TOML cannot say it
    path = tmp_path / "goldstream.toml"
    key = json.dumps(name, ensure_ascii=False)
    table = f'[tasks.{key}]\ntopics = ["logs"]\nstudent = {{ model = "openai/x" }}\njudge = {{ model = "openai/x" }}\n'
    path.write_text(table + 'refiner = { model = "openai/x" }\nstrategist = { model = "openai/x" }\n')
    with pytest.raises(SettingsError, match="becomes a folder name"):
        load_settings(path, (), {})


@pytest.mark.parametrize("version", ["v0001-abcdef12/../../x", "v0001-abcdef12\n", "v1-abcdef12", "v0001-ABCDEF12"])
def test_only_versions_we_write_name_a_folder(version: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError):
        adapter_folder(tmp_path, "toy", version)
