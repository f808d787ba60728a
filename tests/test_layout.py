"""The shape of the project: which folders there are, and that nobody else claims our package names."""

from __future__ import annotations

import importlib.metadata
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = {"schemas", "agents", "streams", "trainer"}


def test_no_other_installed_distribution_claims_our_package_names() -> None:
    claimed = importlib.metadata.packages_distributions()
    assert {name: claimed[name] for name in OURS if set(claimed.get(name, [])) - {"goldstream"}} == {}


def test_the_top_level_holds_what_the_owner_fixed() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folders = {line.split("/")[0] for line in listed.splitlines() if "/" in line}
    assert folders == OURS | {"deploy", "tests", ".ci"}


def test_every_package_is_listed_and_none_can_be_uploaded() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "Private :: Do Not Upload" in project["project"]["classifiers"]
    found = {
        p.parent.relative_to(ROOT).as_posix().replace("/", ".") for n in OURS for p in (ROOT / n).rglob("__init__.py")
    }
    assert set(project["tool"]["setuptools"]["packages"]) == found


def test_the_front_door_is_imported_by_nobody() -> None:
    sources = [path for name in OURS for path in (ROOT / name).rglob("*.py")]
    assert [p for p in sources if "import goldstream" in p.read_text() or "from goldstream" in p.read_text()] == []


def test_every_dependency_is_pinned_and_no_pin_names_an_address() -> None:
    pins = (ROOT / "deploy" / "constraints.txt").read_text().splitlines()
    assert all("==" in line and "/" not in line for line in pins)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {*project["dependencies"], *extras["dev"], *extras["trainer"]}
    names = {name.lower().partition("[")[0] for name in wanted} - {"goldstream"}
    assert names - pinned == set()
