"""The table of faults: a name, the lane it runs on, and what is done while cases flow. Crashes are data.

tests/chaos/run.py runs it. A fault is a function of (lane, cases): it feeds the cases, does harm, and returns ""
or what it saw go wrong; lost, double and repeated are counted by the lane afterwards. A fault that did not happen
must say so: it never counts as passed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import disks
import endpoints
import harm
import training
from factory import Lane

from schemas.settings import ROLES

Act = Callable[[Lane, int], str]


class Fault(NamedTuple):
    """One line of the table. `share` of the cases asked for are fed: a fault that takes long by nature has fewer."""

    name: str
    act: Act
    lane: str = "stub"
    share: float = 1.0


def killed(*names: str, times: int, every_s: float, together: bool = False) -> Act:
    """kill -9 at random moments, `times` a thousand cases, of one of `names` at a time or of all together."""

    def act(lane: Lane, cases: int) -> str:
        kills = max(1, round(times * cases / 1000))
        lane.feed(cases, seconds=kills * every_s)
        for number in range(kills):
            lane.sleep(every_s * lane.dice.uniform(0.5, 1.5))
            lane.kill(*(names if together else [names[number % len(names)]]))
        return ""

    return act


def crashed(points: dict[str, str], upto: int = 40, slack: float = 1.0) -> Act:
    """Each process dies at its named point, at the N-th passage, N from the seed."""

    def act(lane: Lane, cases: int) -> str:
        chosen = {name: f"{point}:{lane.dice.randint(1, upto)}" for name, point in points.items()}
        lane.arm(chosen)
        lane.feed(cases, seconds=4)
        lane.wait_for(lambda: len(lane.reached) == len(points), 40 * slack)
        missed = sorted(set(chosen.values()) - set(lane.reached))
        return f"never reached: {', '.join(missed)}" if missed else ""

    return act


def at_each_role(point: str) -> Act:
    """The same point of all four stages, each in its own process."""
    return crashed({role: f"{role}.{point}" for role in ROLES})


sick, BAD = endpoints.sick, ("bad_answer", "model_unavailable")
never_passes = sick(endpoints.never_passing, first_only=False, roles=("judge",), tolerated=("unresolved",))

FAULTS = [
    Fault("no-fault", harm.nothing),
    Fault("kill-intake", killed("intake", times=4, every_s=1.5)),
    Fault("kill-worker", killed(*ROLES, times=6, every_s=1.5)),
    Fault("kill-retries", killed("retries", times=4, every_s=1.5)),
    Fault("kill-sink", killed("sink", times=5, every_s=1.5)),
    Fault("kill-all", killed("intake", "retries", "sink", *ROLES, times=2, every_s=4, together=True)),
    Fault("intake-after-consume", crashed({"intake": "intake.after_consume"}, upto=500), share=0.6),
    Fault("intake-after-produce", crashed({"intake": "intake.after_produce"}, upto=8), share=0.6),
    Fault("intake-before-commit", crashed({"intake": "intake.before_commit"}, upto=8), share=0.6),
    Fault("worker-after-consume", at_each_role("after_consume")),
    Fault("worker-after-call", at_each_role("after_call")),
    Fault("worker-before-produce", at_each_role("before_produce")),
    Fault("worker-after-produce", at_each_role("after_produce")),
    Fault("worker-before-ack", at_each_role("before_ack")),
    Fault("retries-after-produce", crashed({"retries": "retries.after_produce"}, upto=3), share=0.6),
    Fault("sink-after-temp", crashed({"sink": "sink.after_temp"}, upto=4), share=0.6),
    Fault("sink-after-fsync", crashed({"sink": "sink.after_fsync"}, upto=4), share=0.6),
    Fault("sink-after-link", crashed({"sink": "sink.after_link"}, upto=4), share=0.6),
    Fault("sink-before-dir-fsync", crashed({"sink": "sink.before_dir_fsync"}, upto=4), share=0.6),
    Fault("sink-before-commit", crashed({"sink": "sink.before_commit"}, upto=4), share=0.6),
    Fault("sigterm-mid-call", harm.terminated_mid_call),
    Fault("stopped-worker", harm.stopped_worker),
    Fault("stopped-clients", harm.stopped_clients),
    Fault("two-sinks", harm.two_sinks),
    Fault("two-retries", harm.two_retries),
    Fault("join-and-leave-storm", harm.storm),
    Fault("more-workers-than-partitions", harm.more_workers_than_partitions),
    Fault("calls-that-never-return", harm.long_calls),
    Fault("duplicates-on-every-topic", harm.duplicates, share=0.3),
    Fault("same-id-twice", harm.same_ids),
    Fault("poison-on-every-topic", harm.poison),
    Fault("oversize-records", harm.oversize_records),
    Fault("oversize-answers", harm.oversize_answers),
    Fault("newer-writer", harm.newer_writer),
    Fault("wrong-clock", harm.wrong_clock),
    Fault("truncated-parquet", harm.damaged(harm.truncated)),
    Fault("flipped-parquet", harm.damaged(harm.flipped)),
    Fault("broker-killed", harm.killed_broker, "outage"),
    Fault("broker-down", harm.broker_down, "outage"),
    Fault("disk-full", disks.full, "disk"),
    Fault("disk-read-only", disks.read_only, "disk"),
    Fault("endpoint-429", endpoints.rate_limited(), "endpoint", 0.2),
    Fault("endpoint-429-retry-after", endpoints.rate_limited(**{"Retry-After": "1"}), "endpoint", 0.2),
    Fault("endpoint-500", sick(endpoints.broken), "endpoint", 0.2),
    Fault("endpoint-hangs", sick(endpoints.hanging), "endpoint", 0.2),
    Fault("endpoint-resets", sick(endpoints.resetting), "endpoint", 0.2),
    Fault("answer-cut-off", sick(endpoints.cut_off, tolerated=BAD), "endpoint", 0.2),
    Fault("answer-empty", sick(endpoints.empty, tolerated=BAD), "endpoint", 0.2),
    Fault("score-nan", sick(endpoints.not_a_number, roles=("judge",)), "endpoint", 0.2),
    Fault("judge-invents-a-rule", sick(endpoints.inventing, roles=("judge",)), "endpoint", 0.2),
    Fault("judge-never-passes", never_passes, "endpoint", 0.2),
    Fault("judge-flips", endpoints.flipping, "endpoint", 0.2),
    Fault("kill-real-worker", endpoints.killed_real_worker, "endpoint", 0.5),
    Fault("trainer-killed", training.trainer_killed, "trainer", 0.2),
    Fault("trainer-at-every-point", training.trainer_at_every_point, "trainer", 0.2),
    Fault("registry-disk-full", training.registry_full, "trainer", 0.2),
    Fault("registry-read-only", training.registry_read_only, "trainer", 0.2),
    Fault("two-trainers", training.two_trainers, "trainer", 0.2),
    Fault("rollout-before-record", training.rollout_crashed("rollout.before_record:1"), "trainer", 0.2),
    Fault("rollout-after-record", training.rollout_crashed("rollout.after_record:1"), "trainer", 0.2),
    Fault("two-rollouts", training.two_rollouts, "trainer", 0.2),
]

LANES = {
    "stub": lambda folder, broker: Lane(folder, "stub", broker),
    "disk": disks.disk_lane,
    "endpoint": endpoints.endpoint_lane,
    "trainer": training.trainer_lane,
    "outage": lambda folder, broker: Lane(folder, "outage", broker),
}
# Lanes that run side by side, for most faults are waiting for a session to end; then those that take all down.
TURNS = ((("stub",), ("disk", "endpoint", "trainer")), (("outage",),))
