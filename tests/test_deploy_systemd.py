"""The systemd units: systemd itself reads them without a complaint, and finds them closed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from deployed import DEPLOY, units

from schemas.settings import Settings

pytestmark = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze, of systemd itself")
WORST_EXPOSURE = 2.0  # of 10; what systemd leaves to a unit that says nothing is 9.6


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as an installation would have them, but for where the program lies."""
    folder = tmp_path / "units"
    shutil.copytree(DEPLOY / "systemd", folder)
    for path in folder.glob("*.service"):
        path.write_text(path.read_text().replace("/opt/goldstream/bin/goldstream", sys.executable))
    return folder


def analyze(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SYSTEMD_UNIT_PATH": f"{installed}:"}
    return subprocess.run(["systemd-analyze", *words], env=environment, capture_output=True, text=True, check=False)


def names(installed: Path) -> list[str]:
    found = [path.name.replace("@.", "@1.") for path in sorted(installed.glob("goldstream*.*")) if path.is_file()]
    return [name for name in found if name.endswith((".service", ".target"))]


def test_systemd_understands_every_line(installed: Path) -> None:
    done = analyze(installed, "verify", "--man=no", *[str(installed / name) for name in names(installed)])
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_line_it_does_not_understand_would_be_noticed(installed: Path) -> None:
    with (installed / "goldstream-sink.service").open("a") as unit:
        unit.write("[Service]\nRestrat=always\n")
    done = analyze(installed, "verify", "--man=no", str(installed / "goldstream-sink.service"))
    assert "Restrat" in done.stderr


def test_every_service_is_closed(installed: Path) -> None:
    services = [name for name in names(installed) if name.endswith(".service")]
    assert len(services) >= 8
    for name in services:
        done = analyze(installed, "security", "--offline=true", str(installed / name))
        exposure = float(done.stdout.rpartition("exposure level for")[2].split(":")[1].split()[0])
        assert exposure < WORST_EXPOSURE, done.stdout


def test_the_target_wants_every_process() -> None:
    wanted = " ".join(line for line in units()["goldstream.target"] if line.startswith("Wants="))
    for name in units():
        if name.endswith(".service"):
            assert name.replace("@.", "@1.") in wanted


def test_a_process_has_the_time_that_its_end_takes() -> None:
    for name, lines in units().items():
        if name.endswith(".service") and name != "goldstream-topics.service":
            (stop,) = [line for line in lines if line.startswith("TimeoutStopSec=")]
            assert int(stop.partition("=")[2]) > Settings().worker.drain_s + 10


def test_the_common_part_overrides_no_unit() -> None:
    """systemd reads it after the unit: a setting in both would take its value there."""
    common = {line.partition("=")[0] for line in units()["goldstream-.service.d/10-process.conf"] if "=" in line}
    lists = {"After", "Wants", "EnvironmentFile"}  # these add up
    for name, lines in units().items():
        if name.endswith(".service"):
            assert {line.partition("=")[0] for line in lines if "=" in line} & common <= lists, name
