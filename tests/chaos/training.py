"""Faults of what the trainer and rollout write: the registry, the promotion log and gs.adapters.

A tiny model of random weights is really trained, from the gold that the lane's cases become, so that cases flow here
too. Afterwards every version in the registry must be whole, and one record on gs.adapters must name each promotion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from broker import Broker
from disks import fill, mounted, remount
from factory import STUB, WITHOUT_MODELS, Lane
from factory_settings import role_tables
from tiny import make_tiny_model

from schemas.adapters import AdapterRecord, adapter_folder, verify_adapter
from schemas.status import read_trainer_status as read_status
from trainer.records import KafkaRecords
from trainer.registry import incumbent, list_adapters, promote, promotions

TASK = "chaos"
MORE = """
[local.tiny]
path = "{base}"
[tasks.chaos.trainer]
min_corrected_rows = 30
rank = 4
epochs = 1
max_length = 512
threads = 1
[tasks.chaos.gate]
min_holdout = 3
max_holdout = 6
"""
RUN_POINTS = (
    "trainer.pinned",
    "registry.before_rename",
    "registry.after_rename",
    "trainer.after_publish",
    "registry.after_report",
    "registry.after_link",
)
RUN_LIMIT_S = 150.0  # importing torch takes most of it on a busy machine


@contextmanager
def trainer_lane(folder: Path, broker: Broker) -> Iterator[Lane]:
    """A lane with a trainer and a rollout besides, and a registry on a small file system where that is permitted."""
    base = make_tiny_model(folder / "tiny")
    config = WITHOUT_MODELS + role_tables("chaos", ("student",), model="local/tiny")
    config += role_tables("chaos", ("refiner", "strategist"), **STUB) + MORE.format(base=base)
    with (
        mounted(folder / "trainer" / "state" / "adapters", "96m"),
        Lane(folder, "trainer", broker, config, besides=("trainer", "rollout")) as lane,
    ):
        yield lane


def trainer_killed(lane: Lane, cases: int) -> str:
    """kill -9 in the middle of a run: nothing of it is visible, and the next start trains anew."""
    lane.feed(cases)
    if not lane.wait_for(lambda: _state(lane) == "training", RUN_LIMIT_S):
        return "no run began"
    lane.sleep(lane.dice.uniform(0, 2))
    before = len(_versions(lane))
    lane.kill("trainer")
    return _sound(lane, before + 1)


def trainer_at_every_point(lane: Lane, cases: int) -> str:
    """A run is killed at every point that it passes, one after the other: it goes on each time, to one whole version.

    Killed with its version published, it does not publish again: the next run, of cases that land later, does.
    """
    first, *later = (f"{point}:1" for point in RUN_POINTS)
    lane.arm({"trainer": first}, {"trainer": later})
    before = len(_versions(lane))
    lane.feed(cases, seconds=60)
    lane.wait_for(lambda: len(lane.reached) == len(RUN_POINTS), 3 * RUN_LIMIT_S)
    missed = {first, *later} - set(lane.reached)
    if missed:
        return f"never reached: {', '.join(sorted(missed))}"
    return _sound(lane, before + 1)


def two_trainers(lane: Lane, cases: int) -> str:
    """Two trainers on one registry: one owns the run; when it is killed the other goes on."""
    extra = lane.join("trainer+1")
    before = len(_versions(lane))
    lane.feed(cases)
    try:
        if not lane.wait_for(lambda: _state(lane) == "training", RUN_LIMIT_S):
            return "no run began"
        lane.kill("trainer")
        return _sound(lane, before + 1)
    finally:
        lane.leave(extra)


def registry_full(lane: Lane, cases: int) -> str:
    """The registry's disk is full: the trainer says so, and publishes once there is room."""
    before = len(_versions(lane))
    filler = lane.settings.adapters / "filler"
    fill(filler)
    lane.feed(cases)
    said = lane.wait_for(lambda: "No space left on device" in lane.log_text("trainer"), RUN_LIMIT_S)
    filler.unlink()
    lane.kill("trainer")  # its own next try would come after a minute
    return _sound(lane, before + 1) if said else "the trainer did not say that the disk is full"


def registry_read_only(lane: Lane, cases: int) -> str:
    """The registry's file system turns read-only: the trainer says so, and publishes once it is writable."""
    before = len(_versions(lane))
    lane.kill("rollout")  # its lease is a file open for writing
    remount(lane.settings.adapters, "ro", RUN_LIMIT_S)  # a run of the fault before may still write there
    try:
        lane.feed(cases)
        said = lane.wait_for(lambda: "Read-only file system" in lane.log_text("trainer"), RUN_LIMIT_S)
    finally:
        remount(lane.settings.adapters, "rw")
    lane.kill("trainer")  # its own next try would come after a minute
    return _sound(lane, before + 1) if said else "the trainer did not say that the file system is read-only"


def rollout_crashed(point: str) -> Callable[[Lane, int], str]:
    """Rollout dies before or after its record: each promotion has one record in the end."""

    def act(lane: Lane, cases: int) -> str:
        lane.arm({"rollout": point})
        lane.feed(cases)
        problem = _promote_another(lane)
        reached = lane.wait_for(lambda: point in lane.reached, 30)
        return problem or (_one_record_each(lane) if reached else f"never reached: {point}")

    return act


def two_rollouts(lane: Lane, cases: int) -> str:
    """Two rollouts: the second waits, takes over when the first is killed, and records nothing twice."""
    extra = lane.join("rollout+1")
    lane.feed(cases)
    try:
        for name in ("rollout", "rollout+1", "rollout"):
            problem = _promote_another(lane)
            lane.sleep(lane.dice.uniform(0, 1.5))
            lane.kill(name)
            if problem := problem or _one_record_each(lane):
                return problem
    finally:
        lane.leave(extra)
    return ""


def _state(lane: Lane) -> str:
    status = read_status(lane.settings, TASK)
    return status.state if status else ""


def _versions(lane: Lane) -> list[str]:
    return [manifest.version for manifest in list_adapters(lane.settings.adapters, TASK)]


def _sound(lane: Lane, at_least: int) -> str:
    """Waits for `at_least` versions and an idle trainer; returns what is wrong with any of them."""
    if not lane.wait_for(lambda: len(_versions(lane)) >= at_least and _state(lane) == "idle", RUN_LIMIT_S):
        return f"{len(_versions(lane))} versions, expected {at_least}; the trainer is {_state(lane)}"
    versions = _versions(lane)
    for version in versions:
        verify_adapter(adapter_folder(lane.settings.adapters, TASK, version))
    numbers = [version.partition("-")[0] for version in versions]
    return "" if len(set(numbers)) == len(numbers) else f"version numbers given twice: {versions}"


def _promote_another(lane: Lane) -> str:
    """Promotes a version that does not serve, "" (the base) where there is no other."""
    registry = lane.settings.adapters
    others = [version for version in ["", *_versions(lane)] if version != incumbent(registry, TASK)]
    if not others:
        return "no other version to promote; run a trainer fault first"
    promote(registry, TASK, lane.dice.choice(others), by="hand", reason=lane.fault)
    return ""


def _one_record_each(lane: Lane) -> str:
    """Waits until the last promotion serves; returns what is wrong with the records."""
    records: list[AdapterRecord] = []

    def serves() -> bool:
        records[:] = KafkaRecords(lane.settings).read()
        wanted = incumbent(lane.settings.adapters, TASK)
        return bool(records) and records[-1].version == wanted

    if not lane.wait_for(serves, 30):
        return f"the last promotion does not serve; records {[record.version for record in records]}"
    order = [(record.lease_epoch, record.sequence) for record in records]
    switched = [record.version for record in records]
    promoted = [entry.version for entry in promotions(lane.settings.adapters, TASK)]
    if order != sorted(set(order)):
        return f"records out of order or double: {order}"
    return "" if switched == promoted else f"promoted {promoted}, recorded {switched}"
