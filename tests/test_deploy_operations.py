"""What deploy/README.md says of backups and upgrades, done on a running factory: afterwards the books balance."""

from __future__ import annotations

import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deployed import ROOT
from factory_settings import process_options
from kafka.admin import ConfigResource, ConfigResourceType
from pipeline import STUB_TASK, openai_record, outcomes, processes, produce, toy_answer, wait_for
from steps import command_line
from stub_models import StubModels

from schemas.settings import Settings
from schemas.topics import topic_plan
from streams.gold import query
from streams.lag import LagReader
from streams.supervisor import Child, Supervisor
from streams.topics import connect_admin, create_topics, ensure_source_topic

OURS = ("agents", "schemas", "streams", "trainer")


def begun(make_settings: Callable[..., Settings], models: StubModels, topic: str) -> Settings:
    models.answer = lambda request: toy_answer(request)._replace(hang_s=0.2)  # so that cases are on their way
    settings = make_settings(STUB_TASK.format(topic=topic, api_base=models.api_base))
    create_topics(settings)
    ensure_source_topic(settings, topic, partitions=2)
    return settings


def records(first: int, count: int) -> list[bytes]:
    return [openai_record(f"question {n}", f"req-{n}") for n in range(first, first + count)]


def still_going(settings: Settings) -> int:
    with LagReader(settings) as lag:
        return sum(row.lag for row in lag.read())


def finished(settings: Settings, supervisor: Supervisor, count: int) -> None:
    """Waits for the last outcome, then holds what was promised: each once, and the audit agrees."""
    wait_for(lambda: len(outcomes(settings)) >= count, f"{count} outcomes", supervisor, timeout_s=150)
    wait_for(lambda: still_going(settings) == 0, "no lag", supervisor)
    ids = Counter(row["case_id"] for row in outcomes(settings))
    assert ids == {f"req-{n}": 1 for n in range(count)}


def test_a_gold_set_restored_from_a_backup_goes_on_from_there(
    make_settings: Callable[..., Settings], models: StubModels, tmp_path: Path
) -> None:
    settings = begun(make_settings, models, "backup-logs")
    config, backup = tmp_path / "goldstream.toml", tmp_path / "backup"
    produce(settings, "backup-logs", records(0, 90))
    with processes(settings, config, "intake", "worker", "retries") as flow:
        with processes(settings, config, "sink") as sink:
            wait_for(lambda: len(outcomes(settings)) >= 15, "the first outcomes", sink)
        # The sink has ended: nothing changes below gold/ while it is copied. Cases go on meanwhile.
        shutil.copytree(settings.gold, backup)
        saved = len(outcomes(settings))
        produce(settings, "backup-logs", records(90, 30))
        with processes(settings, config, "sink") as sink:
            wait_for(lambda: len(outcomes(settings)) > saved, "more outcomes", sink)
        produce(settings, "backup-logs", records(120, 30))  # on their way when the processes end
    before = outcomes(settings)
    assert still_going(settings) > 0, "something was on its way when the folder was lost"
    shutil.rmtree(settings.state)
    settings.state.mkdir()
    shutil.copytree(backup, settings.gold)
    assert len(outcomes(settings)) == saved < len(before)
    with processes(settings, config, "intake", "worker", "retries", "sink") as flow:
        finished(settings, flow, 150)
    done = command_line(settings, tmp_path, "audit")
    assert done.exit_code == 0, done.output
    assert "0 missing; 0 double" in done.output


def test_topics_on_three_replicas_ask_for_two_in_sync(make_settings: Callable[..., Settings]) -> None:
    wanted = {replicas: topic_plan(make_settings("", f"kafka.replication={replicas}")) for replicas in (1, 2, 3)}
    for replicas, plan in wanted.items():
        expected = "2" if replicas == 3 else None
        assert {topic.config.get("min.insync.replicas") for topic in plan} == {expected}


def test_too_few_replicas_in_sync_hold_the_flow_and_lose_nothing(
    make_settings: Callable[..., Settings], models: StubModels, tmp_path: Path
) -> None:
    settings = begun(make_settings, models, "insync-logs")
    ask_in_sync(settings, "attempts", 2)  # one broker: its topic is now as one whose other replicas are away
    with processes(settings, tmp_path / "goldstream.toml", "intake", "worker", "retries", "sink") as flow:
        produce(settings, "insync-logs", records(0, 20))
        wait_for(lambda: bool(models.requests), "the first calls", flow)
        with LagReader(settings) as lag:
            rows = [row for row in lag.read() if row.group == "student"]
        assert sum(max(row.committed, 0) for row in rows) == 0, "nothing is acknowledged that is not confirmed"
        assert outcomes(settings) == []
        ask_in_sync(settings, "attempts", 1)
        finished(settings, flow, 20)


def ask_in_sync(settings: Settings, topic: str, replicas: int) -> None:
    """Changes how many replicas of a topic of ours must have a record."""
    name, config = settings.topic(topic), {"min.insync.replicas": str(replicas)}
    admin = connect_admin(settings)
    try:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, configs=config)])
    finally:
        admin.close()


def a_newer_version(folder: Path) -> Path:
    """Copies our code as the next version would be: its cases carry one more field and a higher number."""
    for name in OURS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "goldstream.py", folder)
    path = folder / "schemas" / "case.py"
    text = path.read_text()
    newer, count = re.subn(r"^SCHEMA_VERSION = (\d+)", lambda m: f"SCHEMA_VERSION = {int(m[1]) + 1}", text, flags=re.M)
    assert count == 1
    path.write_text(newer)
    return folder


def test_processes_are_upgraded_and_taken_back_one_by_one_with_cases_in_flight(
    make_settings: Callable[..., Settings], models: StubModels, tmp_path: Path
) -> None:
    settings = begun(make_settings, models, "upgrade-logs")
    options = process_options(settings, tmp_path / "goldstream.toml")
    commands = {name: [name, *options] for name in ("intake", "retries", "sink")}
    commands |= {f"worker-{n}": ["worker", *options] for n in (1, 2)}
    newer = a_newer_version(tmp_path / "newer")
    with Supervisor(settings, commands, backoff_s=(0.1,)) as supervisor:
        supervisor.wait_ready()
        intake, worker = supervisor.children[0], supervisor.children[-1]
        sent = 0
        for child, path in ((intake, str(newer)), (worker, str(newer)), (worker, "")):
            produce(settings, "upgrade-logs", records(sent, 40))
            sent += 40
            wait_for(lambda: len(outcomes(settings)) >= sent - 30, "cases on their way", supervisor)  # noqa: B023
            replace(child, supervisor, path)
        produce(settings, "upgrade-logs", records(sent, 20))  # of the newer intake, for the older worker and sink
        finished(settings, supervisor, sent + 20)
    _, rows = query(settings.gold, "select distinct schema_version from outcomes order by 1")
    versions = [version for (version,) in rows]
    assert len(versions) == 2, f"cases of both versions have ended: {versions}"
    assert versions[1] == versions[0] + 1
    done = command_line(settings, tmp_path, "audit")
    assert done.exit_code == 0, done.output


def replace(child: Child, supervisor: Supervisor, path: str) -> None:
    """Ends a process as a rolling restart does, and starts it with the code at `path`, "" for ours."""
    # PYTHONSAFEPATH: else the working folder, which holds our code, would come first.
    child.environment = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"} if path else {}
    old: Any = child.process
    old.send_signal(signal.SIGTERM)
    wait_for(lambda: child.ready and child.process is not old, f"{child.name} anew", supervisor, timeout_s=120)
