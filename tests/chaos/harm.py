"""What is done to a running factory, fault by fault; tests/chaos/faults.py has them in its table.

Each takes (lane, cases), feeds the cases, does its harm and returns "" or what it saw go wrong.
"""

from __future__ import annotations

import json
import signal
import statistics
from collections.abc import Callable

from factory import SESSION_S, Lane
from traffic import log_record

from schemas.gold import landing_partitions, read_chain
from schemas.settings import ROLES
from schemas.topics import OUTCOMES, STAGE_INPUT, retry_topic

STEADY_CASES_PER_S = 200
MEMORY_CASES = 20_000  # from here on the control also judges whether a worker's memory is flat
MEMORY_GROWTH = 0.1
CALLED_AGAIN = 0.3  # of the cases: what the dying broker had taken and not confirmed is on a topic twice
FUTURE = 10**9  # added to a source offset: the coordinates of a record that a newer writer made


def nothing(lane: Lane, cases: int) -> str:
    """The control: with no fault, no call is repeated, and no process grows."""
    lane.feed(cases, seconds=max(5.0, cases / STEADY_CASES_PER_S))
    samples = lane.memory_until(lambda: lane.traffic.ended)
    lane.notes["memory_mib"] = {name: [round(size) for size in sizes] for name, sizes in samples.items()}
    if cases < MEMORY_CASES:
        return ""
    grown = {name: round(_growth(samples[name]), 3) for name in ROLES}
    lane.notes["memory_growth"] = grown
    return "" if max(map(abs, grown.values())) <= MEMORY_GROWTH else f"memory grew: {grown}"


def terminated_mid_call(lane: Lane, cases: int) -> str:
    """SIGTERM while some calls take a second and some hang: those end, these are cancelled and made again."""
    lane.feed(cases, acts=lambda n: {0: " student:slow refiner:slow", 5: " student:hang"}.get(n % 100, ""))
    lane.at_risk = None
    for _ in range(2):
        lane.sleep(2 + lane.dice.random())
        for role in ROLES:
            lane.send_signal(role, signal.SIGTERM)
    return ""


def stopped_worker(lane: Lane, cases: int) -> str:
    """SIGSTOP of workers past their session, while others take over; SIGCONT brings back owners of nothing."""
    lane.at_risk = None
    extra = lane.join("student+1", "student,judge")
    lane.wait_for(lambda: extra.ready)
    lane.feed(cases)
    lane.sleep(1 + lane.dice.random())
    return _stop_and_continue(lane, ["student", "judge", "refiner"], SESSION_S + 4) or _leave(lane, extra)


def stopped_clients(lane: Lane, cases: int) -> str:
    """The same of intake, retries and the sink, with a second sink that takes over and fences the first."""
    lane.at_risk = None
    extra = lane.join("sink+1")
    lane.wait_for(lambda: extra.ready)
    lane.feed(cases)
    lane.sleep(1 + lane.dice.random())
    return _stop_and_continue(lane, ["intake", "retries", "sink"], 14) or _leave(lane, extra)


def killed_broker(lane: Lane, cases: int) -> str:
    """kill -9 of the broker, twice, back after a second or two."""
    lane.at_risk = None
    lane.feed(cases)
    for _ in range(2):
        lane.sleep(1 + 2 * lane.dice.random())
        lane.broker.kill()
        lane.kills += 1
        lane.sleep(1 + lane.dice.random())
        lane.broker.start()
    return ""


def broker_down(lane: Lane, cases: int) -> str:
    """The broker is away for longer than a producer's request timeout (40 s) and a consumer's session.

    It puts all members out of their groups before it lets them in, so that no commit under way succeeds. What the
    workers had done they know: each has the partitions again that it had.
    """
    lane.at_risk = None
    lane.feed(cases, seconds=2)
    lane.sleep(2)
    lane.broker.kill()
    lane.kills += 1
    lane.sleep(45)
    lane.broker.start()
    lane.drain()
    repeated = lane.count()["repeated_calls"]
    return "" if repeated <= max(300, CALLED_AGAIN * cases) else f"{repeated} calls were made again, and no worker died"


def storm(lane: Lane, cases: int) -> str:
    """Workers of all roles join and leave, some in order and some killed."""
    lane.at_risk = None
    lane.feed(cases, seconds=12)
    joined = []
    for number in range(4):
        joined.append(lane.join(f"all+{number}", ",".join(ROLES)))
        lane.sleep(1 + 3 * lane.dice.random())
        if len(joined) > 1:
            lane.leave(joined.pop(0), lane.dice.choice((signal.SIGTERM, signal.SIGKILL)))
    return _leave(lane, *joined)


def more_workers_than_partitions(lane: Lane, cases: int) -> str:
    """Three workers of a role for two partitions: the idle one is healthy and stays."""
    lane.at_risk = None
    extra = [lane.join(f"all+{number}", ",".join(ROLES)) for number in range(2)]
    lane.wait_for(lambda: all(child.ready for child in extra), 90)
    lane.feed(cases)
    lane.sleep(22)  # the watchdog would have found an ailment by now
    ended = [event for event in lane.events if "ended" in event]
    _leave(lane, *extra)
    return f"workers ended: {ended}" if ended else ""


def long_calls(lane: Lane, cases: int) -> str:
    """Calls that never return: the event's deadline cuts them and a retry topic brings the case back."""
    lane.at_risk = None
    hang = {3: " student:hang", 13: " refiner:hang"}
    lane.feed(cases, acts=lambda n: hang.get(n % 100, ""))
    lane.drain()
    cut = lane.log_text("student").count("model_timeout")
    return "" if cut else "no call was cut by the deadline"


def duplicates(lane: Lane, cases: int) -> str:
    """Every record of each topic of ours is produced again, while cases flow and after."""
    lane.at_risk = None
    lane.feed(cases)
    again = 0
    for _ in range(2):
        lane.sleep(2 + lane.dice.random())
        for topic in _ours(lane):
            records = lane.raw(lane.settings.topic(topic))
            again += len(records)
            lane.send(records, lane.settings.topic(topic), expect=False)
    return "" if again > cases else f"only {again} records were produced again"


def same_ids(lane: Lane, cases: int) -> str:
    """The product sends ids twice: with the same body a duplicate, with another a conflict; the first wins."""
    lane.feed(cases - 200)
    values = []
    for number in range(100):
        name = f"{lane.fault}-twice-{number}"
        first = log_record(f"[case {name} needs 1] first", name)
        other = log_record(f"[case {name} needs 1] other", name)
        values += [first, first if number % 2 else other]
    lane.at_risk = None  # two records, so two calls
    lane.send(values)
    lane.drain()
    found = lane.count()["reasons"]
    wanted = {"duplicate": 50, "id_conflict": 50}
    return "" if found.items() >= wanted.items() else f"expected {wanted}, found {found}"


def poison(lane: Lane, cases: int) -> str:
    """Undecodable bytes on each topic of ours, beside cases in flight: each a dead row of its own."""
    lane.feed(cases)
    for number in range(3):
        lane.sleep(1)
        for topic in _ours(lane):
            bad = bytes(lane.dice.randrange(256) for _ in range(40))
            lane.send([b"\xff\xfe" + bad, b'{"case_id": 7', b"[]", b"null"][: 2 + number], lane.settings.topic(topic))
    return ""


def oversize_records(lane: Lane, cases: int) -> str:
    """Source records over intake's limit are dead, and stop nothing."""
    lane.feed(cases - 20)
    text = "x" * 1_500_000
    lane.send(
        [log_record(f"[case {lane.fault}-big-{n}-x needs 1] {text}", f"{lane.fault}-big-{n}-x") for n in range(20)]
    )
    lane.drain()
    return _expect_reason(lane, "too_large", 20)


def oversize_answers(lane: Lane, cases: int) -> str:
    """An answer that makes the case too large for the next hop ends it as dead, as it was before."""
    lane.feed(cases, acts=lambda n: " student:huge" if n % 100 == 9 else "")
    lane.drain()
    return _expect_reason(lane, "too_large", len(range(9, cases, 100)))


def newer_writer(lane: Lane, cases: int) -> str:
    """Records of a newer version on every stage's topic: read as far as known, and what is unknown is kept."""
    lane.at_risk = None
    lane.feed(cases)
    lane.sleep(3)
    made = 0
    for number, topic in enumerate([*STAGE_INPUT.values(), retry_topic(1)]):
        values = [value for value in lane.raw(lane.settings.topic(topic)) if value][:40]
        newer = [_from_the_future(lane, value, f"{number}9", (number + 1) * FUTURE) for value in values]
        lane.send(newer, lane.settings.topic(topic), expect=False)
        lane.traffic.cases += len(newer)
        made += len(newer)
    lane.drain()
    kept = sum(b'"from_the_future"' in (value or b"") for value in lane.raw(lane.settings.topic(OUTCOMES)))
    return "" if made and kept >= made else f"{kept} of {made} outcomes kept the unknown field"


def wrong_clock(lane: Lane, cases: int) -> str:
    """The worker's clock runs an hour ahead and that of retries an hour behind, then the other way round."""
    lane.at_risk = None
    lane.tolerated = {"model_unavailable"}
    lane.feed(cases, seconds=12)
    for student, retries in ((3600, -3600), (-3600, 3600)):
        lane.restart("student", GOLDSTREAM_CLOCK_OFFSET_S=str(student))
        lane.restart("retries", GOLDSTREAM_CLOCK_OFFSET_S=str(retries))
        lane.sleep(8)
    drained = lane.drain(90)
    for name in ("student", "retries"):
        lane.restart(name, GOLDSTREAM_CLOCK_OFFSET_S="0")
    return "" if drained else f"stuck with wrong clocks, lag {lane.lag}"


def two_sinks(lane: Lane, cases: int) -> str:
    """Two sinks share the partitions; one after the other is killed."""
    extra = lane.join("sink+1")
    lane.wait_for(lambda: extra.ready)
    lane.feed(cases)
    for name in ("sink", "sink+1"):
        lane.sleep(2 + lane.dice.random())
        lane.kill(name)
    return _leave(lane, extra)


def two_retries(lane: Lane, cases: int) -> str:
    """A second `goldstream retries` joins while cases wait, is killed, joins again and leaves in order."""
    lane.feed(cases, seconds=20)
    for number in (signal.SIGKILL, signal.SIGTERM):
        extra = lane.join("retries+1")
        lane.wait_for(lambda extra=extra: extra.ready)  # type: ignore[misc]
        lane.sleep(2 + lane.dice.random())
        lane.leave(extra, number)
    return ""


def damaged(how: Callable[[bytes, int], bytes]) -> Callable[[Lane, int], str]:
    """A landing file is damaged: the sink refuses it with the file's name, and goes on once it is restored."""

    def act(lane: Lane, cases: int) -> str:
        lane.feed(cases)
        gold = lane.settings.gold
        lane.wait_for(lambda: all(len(read_chain(gold, p)) > 1 for p in landing_partitions(gold) or [0]))
        path = lane.dice.choice([file.path for p in landing_partitions(gold) for file in read_chain(gold, p)])
        whole = path.read_bytes()
        path.write_bytes(how(whole, lane.dice.randrange(4, len(whole) - 8)))
        lane.kill("sink")
        refused = lane.wait_for(lambda: f"{path.name}: " in refusals(lane.log_text("sink")), 30)
        path.write_bytes(whole)
        return "" if refused else f"the sink took the damaged {path.name}"

    return act


def truncated(whole: bytes, at: int) -> bytes:
    """The first `at` bytes."""
    return whole[:at]


def flipped(whole: bytes, at: int) -> bytes:
    """One bit is another."""
    return whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :]


def _growth(sizes: list[float]) -> float:
    """Returns by what share the last tenth of the samples is larger than those after a fifth of the run."""
    tenth = max(1, len(sizes) // 10)
    return statistics.median(sizes[-tenth:]) / statistics.median(sizes[2 * tenth : 3 * tenth] or sizes[:1]) - 1


def refusals(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.startswith("error: "))


def _ours(lane: Lane) -> list[str]:
    return [*STAGE_INPUT.values(), *(retry_topic(s) for s in lane.settings.worker.retry_delays_s), OUTCOMES]


def _stop_and_continue(lane: Lane, names: list[str], seconds: float) -> str:
    processes = [process for name in names if (process := lane.child(name).process) is not None]
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        lane.sleep(seconds)
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)
    return ""


def _leave(lane: Lane, *children: object) -> str:
    lane.drain()
    for child in children:
        lane.leave(child)  # type: ignore[arg-type]
    return ""


def _expect_reason(lane: Lane, reason: str, count: int) -> str:
    found = lane.count()["reasons"].get(reason, 0)
    return "" if found == count else f"{found} outcomes with reason {reason}, expected {count}"


def _from_the_future(lane: Lane, value: bytes, mark: str, offset: int) -> bytes:
    """Returns a case as a newer version would write it, with another id and place and with fields unknown to us."""
    case = json.loads(value)
    old = case["case_id"]
    case = json.loads(value.replace(f"{lane.fault}-".encode(), f"{lane.fault}-{mark}".encode()))
    case["source"]["offset"] += offset
    case |= {"schema_version": 2, "from_the_future": {"of": old, "list": [1, 2.5, None]}}
    case["source"]["also_new"] = "x"
    lane.traffic.sent.append((lane.topic, case["source"]["partition"], case["source"]["offset"]))
    return json.dumps(case, separators=(",", ":")).encode()
