"""`goldstream demo`: the whole loop on a synthetic clinical scribe, on real Kafka, measured.

Starts the same processes as `goldstream up`, lets another process log the product's traffic in waves,
and prints what happened. It decides nothing: if the gate refuses an adapter, the table says so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import msgspec

from schemas.adapters import AdapterManifest, GateReport, read_manifest
from schemas.errors import AdapterError, GoldstreamError
from schemas.settings import Settings, load_settings
from schemas.tables import print_table
from schemas.topics import ADAPTERS
from streams.broker import start_broker, stop_broker
from streams.follow import Follower
from streams.gold import query
from streams.serving import Serving
from streams.supervisor import Supervisor
from streams.topics import create_topics, ensure_source_topic
from streams.traffic import TOPIC

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "deploy" / "demo.toml"
TASK = "scribe"
HOLDOUT_SEED = 7000
WAVE_SEED = 8000
WAIT_S = 240.0  # for a wave to end, or an adapter to be decided on
PROCESSES = ("intake", "worker", "retries", "sink", "trainer", "rollout")


_DECIDED = {"promote": "promoted", "refuse": "refused", "undecided": "undecided"}


class Wave(msgspec.Struct):
    """One line of the demo's table."""

    wave: str
    adapter: str
    cases: int
    first_attempt_pass_rate: float
    gold: int
    rounds: float
    unresolved: int
    dead: int
    seconds: float


def run_demo(sizes: list[int], holdout: int, json_path: Path | None, keep: bool) -> dict[str, Any]:
    """Runs the demo, prints its report, writes it to `json_path`, and returns it."""
    options = ["--config", str(CONFIG), "--set", f"local.scribe.path={ROOT / 'agents/scribe/student'}"]
    settings = load_settings(CONFIG, options[3::2])
    if not keep:
        stop_broker(settings)
        shutil.rmtree(settings.state, ignore_errors=True)
    began = time.monotonic()
    _say("starting Kafka (its jars come through Maven the first time) ...")
    broker = start_broker(settings)
    serving = Serving()
    try:
        create_topics(settings)
        ensure_source_topic(settings, TOPIC)
        _say(f"Kafka runs at {broker.bootstrap_servers}; starting {', '.join(PROCESSES)} ...")
        with Supervisor(settings, {name: [name, *options] for name in PROCESSES}) as supervisor:
            supervisor.wait_ready()
            follower = Follower(settings, ADAPTERS, serving.apply).start()
            follower.wait_ready()
            run = _Run(settings, options, supervisor, serving, broker.pid)
            try:
                run.measure("holdout", holdout, "holdout", HOLDOUT_SEED)
                for number, size in enumerate(sizes, 1):
                    run.measure(f"wave {number}", size, "train", WAVE_SEED + number)
                    run.await_decision()
            finally:
                follower.stop()
    finally:
        stop_broker(settings)
    report = run.report(time.monotonic() - began)
    _print_report(settings, run, report)
    if json_path is not None:
        json_path.write_text(json.dumps(report, indent=2) + "\n")
    return report


class _Run:
    """What the demo has seen so far."""

    def __init__(
        self, settings: Settings, options: list[str], supervisor: Supervisor, serving: Serving, broker_pid: int
    ) -> None:
        self.settings = settings
        self.waves: list[Wave] = []
        self.records_in = _count(settings)
        self.peak_bytes = 0
        self._options = options
        self._supervisor = supervisor
        self._serving = serving
        self._broker_pid = broker_pid

    def measure(self, name: str, count: int, split: str, seed: int) -> None:
        """Has the product log `count` calls and waits until each has its outcome."""
        began = time.monotonic()
        arguments = ["demo-traffic", *self._options, "--count", str(count), "--split", split, "--seed", str(seed)]
        product = subprocess.run(
            [sys.executable, "-m", "goldstream", *arguments], capture_output=True, text=True, cwd=Path.cwd()
        )
        if product.returncode != 0:
            raise GoldstreamError(f"the demo's product could not log its traffic:\n{product.stderr[-2000:]}")
        self.records_in += count
        self._wait(f"{name}: {count} prompts logged", lambda: _count(self.settings) >= self.records_in, self._progress)
        wave = self._wave(name, seed, time.monotonic() - began)
        self.waves.append(wave)
        _say(
            f"{name}: {wave.cases} cases, first attempt passed {wave.first_attempt_pass_rate:.1%} "
            f"under {wave.adapter}, {wave.gold} gold, {wave.seconds:.1f} s"
        )

    def await_decision(self) -> None:
        """Where enough corrected rows have gathered for a run, waits for its gate, and for the workers' adapter."""
        manifests = _manifests(self.settings)
        trained = manifests[-1].watermark if manifests else {}
        new = _corrected_above(self.settings, trained)
        needed = self.settings.task(TASK).trainer.min_corrected_rows
        if new < needed:
            _say(f"{new} new corrected rows, {needed} start a training run: none is due")
            return
        _say(f"{new} new corrected rows: the trainer is due")
        known = len(_reports(self.settings))
        self._wait("training", lambda: len(_reports(self.settings)) > known, self._training)
        report = _reports(self.settings)[-1]
        _say(
            f"gate: {report.version} {_DECIDED[report.decision]}, holdout {report.before:.1%} -> {report.after:.1%} "
            f"(p = {report.p_value:.2g}): {report.reason}"
        )
        if report.decision == "promote":
            self._wait("rollout", lambda: self._serving.version(TASK) == report.version, lambda: "")
            _say(f"{report.version} serves; the running workers use it from their next call on")

    def report(self, seconds: float) -> dict[str, Any]:
        """Returns the figures, all of them read from the gold set and the registry."""
        ends = dict(_query(self.settings, "select outcome, count(*) from outcomes group by 1"))
        duplicates = _query(
            self.settings,
            "select count(*) - count(distinct case_id) from outcomes",
        )[0][0]
        adapters = [
            {
                "version": report.version,
                "holdout_before": report.before,
                "holdout_after": report.after,
                "promoted": report.decision == "promote",
                "p_value": report.p_value,
            }
            for report in _reports(self.settings)
        ]
        waves = [msgspec.to_builtins(wave) for wave in self.waves]
        return {
            "records_in": self.records_in,
            **{kind: int(ends.get(kind, 0)) for kind in ("gold", "unresolved", "dead", "holdout", "dropped")},
            "duplicates": int(duplicates),
            "adapters": adapters,
            "waves": waves,
            "seconds": round(seconds, 1),
            "peak_memory_bytes": self._supervisor.peak_bytes,
        }

    def _wave(self, name: str, seed: int, seconds: float) -> Wave:
        row = _query(
            self.settings,
            f"""select count(*),
                       coalesce(avg(first_attempt_passed::int), 0),
                       count(*) filter (outcome = 'gold'),
                       coalesce(avg(rounds) filter (outcome = 'gold' and rounds > 0), 0),
                       count(*) filter (outcome = 'unresolved'),
                       count(*) filter (outcome = 'dead'),
                       list_sort(list(distinct coalesce(nullif(first_adapter, ''), 'the base')))
                from outcomes where case_id like 'chatcmpl-{seed}-%'""",
        )[0]
        return Wave(name, ", ".join(row[6] or ()), row[0], row[1], row[2], row[3], row[4], row[5], round(seconds, 1))

    def _progress(self) -> str:
        return f"{_count(self.settings)} of {self.records_in} have their outcome"

    def _training(self) -> str:
        try:
            status = json.loads((self.settings.state / "trainer" / f"{TASK}.json").read_text())
            return f"{status['state']} {status.get('step', 0)}/{status.get('steps', 0)}"
        except (OSError, ValueError, KeyError):
            return ""

    def _wait(self, what: str, done: Any, progress: Any) -> None:
        deadline = time.monotonic() + WAIT_S
        last = ""
        spoken = time.monotonic()
        while not done():
            for happened in self._supervisor.check():
                _say(happened)
            self._supervisor.measure(self._broker_pid)
            text = progress()
            if text != last and time.monotonic() - spoken > 2.0:
                _say(f"{what}; {text}")
                last, spoken = text, time.monotonic()
            if time.monotonic() > deadline:
                tails = "\n".join(f"--- {c.name}\n{c.tail()}" for c in self._supervisor.children)
                raise GoldstreamError(f"{what}: not done after {WAIT_S:.0f} s ({text}). The logs end in:\n{tails}")
            time.sleep(0.25)


def _print_report(settings: Settings, run: _Run, report: dict[str, Any]) -> None:
    columns = list(Wave.__struct_fields__)
    rows = [[*_cells(wave)] for wave in run.waves]
    click.echo()
    print_table([c.replace("_", " ") for c in columns], rows, as_json=False, title="Waves")
    gates = [
        [a["version"], f"{a['holdout_before']:.1%}", f"{a['holdout_after']:.1%}", "yes" if a["promoted"] else "refused"]
        for a in report["adapters"]
    ]
    print_table(
        ["adapter", "holdout before", "holdout after", "promoted"],
        gates,
        as_json=False,
        title="Adapters (greedy, holdout)",
    )
    accounted = sum(report[kind] for kind in ("gold", "unresolved", "dead", "holdout", "dropped"))
    missing = report["records_in"] - accounted
    click.echo(
        f"{report['records_in']} records in = {report['gold']} gold + {report['unresolved']} unresolved + "
        f"{report['dead']} dead + {report['holdout']} holdout + {report['dropped']} dropped"
        f"{f' + {missing} MISSING' if missing else ''}; "
        f"{report['duplicates']} duplicates; {report['seconds']:.0f} s; "
        f"peak memory of all processes {report['peak_memory_bytes'] / (1 << 30):.2f} GiB"
    )
    sql = (
        "select v.rule, count(*) as times, any_value(v.hinge) as example, any_value(v.why) as why "
        "from (select unnest(violations) as v from attempts where round = 0) group by all order by times desc"
    )
    goldstream, config = _program(), f"--config {CONFIG.relative_to(ROOT)}"
    click.echo(f'\nWhat does the student get wrong, and where?\n  {goldstream} gold sql "{sql}" {config}')
    found, answer = query(settings.gold, sql)
    print_table(found, answer, as_json=False)
    one = _query(settings, "select case_id from gold where rounds > 1 order by case_id limit 1")
    click.echo("Next:")
    click.echo(f'  {goldstream} gold sql "select * from rgt_pairs limit 4" {config}')
    if one:
        click.echo(f"  {goldstream} case {one[0][0]} {config}")
    click.echo(f"  {goldstream} gold stats {config}")
    click.echo(f"  {goldstream} init          then name your own topic, models and rules, and: {goldstream} up")


def _program() -> str:
    """Returns what to type for `goldstream`: its path where the environment is not on the search path."""
    here = Path(sys.executable).with_name("goldstream")
    return "goldstream" if shutil.which("goldstream") == str(here) else os.path.relpath(here)


def _cells(wave: Wave) -> list[Any]:
    values = msgspec.structs.asdict(wave)
    values["first_attempt_pass_rate"] = f"{wave.first_attempt_pass_rate:.1%}"
    values["rounds"] = f"{wave.rounds:.2f}"
    return list(values.values())


def _query(settings: Settings, sql: str) -> list[tuple[Any, ...]]:
    return query(settings.gold, sql)[1]


def _count(settings: Settings) -> int:
    return int(_query(settings, "select count(*) from outcomes")[0][0])


def _corrected_above(settings: Settings, watermark: dict[int, int]) -> int:
    rows = _query(
        settings,
        f"select kafka_partition, kafka_offset from gold where corrected and split = 'train' and task = '{TASK}'",
    )
    return sum(offset >= watermark.get(partition, 0) for partition, offset in rows)


def _folders(settings: Settings) -> list[Path]:
    folder = settings.adapters / TASK
    return sorted(p for p in folder.glob("v*") if p.is_dir()) if folder.is_dir() else []


def _manifests(settings: Settings) -> list[AdapterManifest]:
    found = []
    for folder in _folders(settings):
        try:
            found.append(read_manifest(folder))
        except AdapterError:
            continue
    return found


def _reports(settings: Settings) -> list[GateReport]:
    return [
        msgspec.json.decode((folder / "gate.json").read_bytes(), type=GateReport)
        for folder in _folders(settings)
        if (folder / "gate.json").exists()
    ]


def _say(text: str) -> None:
    click.echo(time.strftime("%H:%M:%S ") + text)
