"""Writes deploy/metrics.md: each metric as a running factory shows it. `make metrics-page` runs it, in some minutes.

1. the small factory of tests/metered.py, for what goes wrong: dead letters, retries, a budget
2. the demo with an exporter beside it, for what only training brings: the gate, adapters, rollout
A family is shown from the demo where it has a series there, else from the small factory; of many series, some.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from factory_settings import process_options
from metered import metered, run_through
from pipeline import wait_for
from scraped import scrape_all, series, targets, total
from stub_models import StubModels

from schemas.measures import PROCESS_FAMILIES
from schemas.metrics import Family
from schemas.settings import Settings, load_settings
from streams.broker import start_broker, stop_broker
from streams.exporter.families import FAMILIES
from streams.supervisor import Supervisor

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "deploy" / "metrics.md"
DEMO = ["--waves", "60,140"]
READINGS = 3
MOST_LINES = 8  # of a family; a histogram shows the buckets of its first series
Scrapes = dict[str, str]  # process -> the text of a scrape

INTRO = (ROOT / "tests" / "metrics_page.md").read_text("utf-8")
TITLES = {
    "intake": "Intake",
    "worker": "Worker",
    "retries": "Retries",
    "sink": "Sink",
    "trainer": "Trainer",
    "rollout": "Rollout",
    "exporter": "Exporter",
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        small, demo = scrape_small(Path(folder) / "small"), scrape_demo(Path(folder) / "demo")
    PAGE.write_text(INTRO + "".join(section(process, demo, small) for process in TITLES))


def scrape_small(folder: Path) -> Scrapes:
    """Returns the last scrapes of the small factory."""
    folder.mkdir()
    broker = load_settings(None, [f"state_dir={folder / 'broker'}"], environ={})
    address = start_broker(broker).bootstrap_servers

    def make(toml: str) -> Settings:
        (folder / "goldstream.toml").write_text(toml)
        changes = [f"kafka.bootstrap_servers={address}", f"state_dir={folder / 'state'}"]
        return load_settings(folder / "goldstream.toml", changes, environ={})

    try:
        with StubModels() as models:
            settings = metered(make, models)
            supervisor = run_through(settings, folder / "goldstream.toml")
            try:
                pause(folder / "goldstream.toml", settings)
                wait_for(lambda: _read_all(settings), "the exporter's reading", supervisor)
                return scrape_all(settings)
            finally:
                supervisor.stop()
    finally:
        stop_broker(broker)


def pause(config: Path, settings: Settings) -> None:
    """Decides on one case as an expert, so that reviews have a series."""
    review = ["review", "reject", "req-1", "--reason", "not kind enough", *process_options(settings, config)]
    command = [sys.executable, "-m", "goldstream", *review]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _read_all(settings: Settings) -> bool:
    return total(series(scrape_all(settings).get("exporter", "")), "goldstream_reviews") == 1


def scrape_demo(folder: Path) -> Scrapes:
    """Returns the last scrapes of the demo's processes."""
    environment = os.environ | {"GOLDSTREAM_STATE_DIR": str(folder)}
    settings = load_settings(ROOT / "deploy" / "demo.toml", [f"state_dir={folder}"], environ={})
    demo = subprocess.Popen([sys.executable, "-m", "goldstream", "demo", *DEMO], env=environment)
    found: Scrapes = {}
    command = ["exporter", "--config", str(ROOT / "deploy" / "demo.toml"), "--set", f"state_dir={folder}"]
    exporter: Supervisor | None = None
    try:
        while demo.poll() is None:
            if exporter is None and "worker" in targets(settings):
                exporter = Supervisor(settings, {"exporter": command}).__enter__()
            now = scrape_all(settings)
            if total(series(now.get("exporter", "")), "goldstream_exporter_up") < READINGS:
                now.pop("exporter", None)  # Kafka is gone at the demo's end
            found |= now
            time.sleep(1)
    finally:
        if exporter is not None:
            exporter.stop()
        if demo.poll() is None:
            demo.terminate()
            demo.wait(60)
    return found


def section(process: str, *scrapes: Scrapes) -> str:
    """Returns a process's part of the page."""
    families: tuple[Family, ...] = FAMILIES if process == "exporter" else PROCESS_FAMILIES[process]
    text = f"\n## {TITLES[process]}\n\n"
    if process == "trainer":
        families = tuple(family for family in families if family not in PROCESS_FAMILIES["worker"])
        text += "And the families of model calls, as the worker's, where the gate's judge is a model.\n\n"
    blocks = [block(family, [one.get(process, "") for one in scrapes]) for family in families]
    return text + "```\n" + "\n".join(blocks) + "```\n"


def block(family: Any, texts: list[str]) -> str:
    """Returns one family as the first scrape that has a series of it shows it."""
    name = family.name + ("_total" if family.kind == "counter" else "")
    lines: list[str] = []
    for text in texts:
        lines = [line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} ", f"{name}_"))]
        lines = [line for line in lines if _of(family, line)]
        if lines:
            break
    lines = lines or ["# (none in this run)"]
    most = len(family.bounds) + 3 if family.kind == "histogram" else MOST_LINES
    return "\n".join([f"# HELP {name} {family.help}", f"# TYPE {name} {family.kind}", *lines[:most]]) + "\n"


def _of(family: Any, line: str) -> bool:
    name = line.partition("{")[0].partition(" ")[0]
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}[family.kind]
    return name in {family.name + suffix for suffix in suffixes}


if __name__ == "__main__":
    main()
