"""What `goldstream doctor` says of the models that the settings name."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from schemas.settings import load_settings
from streams.doctor import _python, _tasks

TOML = """
[tasks.toy]
topics = ["log"]
rubric.rules = [{ id = "kind", text = "Be kind." }]
student = { model = "openai/s", api_key_env = "KEY_OF_STUDENT" }
judge = { model = "openai/j", fallbacks = [{ model = "openai/f", api_key_env = "KEY_OF_FALLBACK" }] }
refiner = { model = "openai/r" }
strategist = { model = "openai/t" }

[tasks.toy.panel]
decide = "escalate"
judges = [{ model = "anthropic/p", api_key_env = "KEY_OF_PANEL" }]
tie_break = { model = "openai/b", api_key_env = "KEY_OF_TIE" }
"""


def test_every_key_that_a_task_needs_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "goldstream.toml"
    path.write_text(TOML)
    settings = load_settings(path, [], environ={})
    monkeypatch.setenv("KEY_OF_TIE", "x")
    said = {one.check.removeprefix("task toy: "): (one.result, one.remedy) for one in _tasks(settings)}
    assert said["student"] == ("missing", "export KEY_OF_STUDENT")
    assert said["judge, fallback 1"] == ("missing", "export KEY_OF_FALLBACK")
    assert said["panel judge 1"] == ("missing", "export KEY_OF_PANEL")
    assert said["tie-break judge"] == ("ok", "")


def test_torch_is_missing_only_where_a_model_runs_in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_torch(name: str) -> str:
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr("importlib.metadata.version", without_torch)
    path = tmp_path / "goldstream.toml"
    path.write_text(TOML)
    results = []
    for student in ("openai/s", "local/s"):
        settings = load_settings(path, [f"tasks.toy.student.model={student}", "local.s.path=s"], environ={})
        results += [one.result for one in _python(settings) if one.check == "torch"]
    assert results == ["note", "missing"]


def test_a_model_without_a_price_under_a_cap_is_told_before_the_start(tmp_path: Path) -> None:
    path = tmp_path / "goldstream.toml"
    price = "input_cost_per_token = 0.0, output_cost_per_token = 0.0"
    path.write_text(TOML.replace('model = "openai/t"', f'model = "openai/t", {price}'))
    settings = load_settings(path, ["tasks.toy.budget.strategist.usd_per_day=1"], environ={})
    said = {one.check: one for one in _tasks(settings)}
    assert said["task toy: prices"].result == "ok"
    settings = load_settings(path, ["tasks.toy.budget.usd_per_day=1"], environ={})
    said = {one.check: one for one in _tasks(settings)}
    assert said["task toy: prices"].result == "missing"
    assert "output_cost_per_token" in said["task toy: prices"].remedy


def test_without_a_cap_in_money_no_price_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "goldstream.toml"
    path.write_text(TOML)
    assert "task toy: prices" not in {one.check for one in _tasks(load_settings(path, [], environ={}))}
