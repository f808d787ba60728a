"""Claims about what the watchdog calls an ailment: a group as kafka-python describes it, a verdict."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.errors import GoldstreamError
from schemas.settings import Settings
from streams import watchdog as watchdog_module
from streams.watchdog import Membership, Watchdog, diagnose

US = Membership("gs.judge", "goldstream-judge-1", ["gs.attempts"])
FOUR = {"gs.attempts": {0, 1, 2, 3}}


def member(client_id: str, *partitions: int, topic: str = "gs.attempts") -> dict[str, Any]:
    assigned = [{"topic": topic, "partitions": list(partitions)}] if partitions else []
    return {"client_id": client_id, "member_assignment": {"assigned_partitions": assigned}}


def group(*members: dict[str, Any], state: str = "Stable") -> dict[str, Any]:
    return {"group_state": state, "members": list(members)}


def test_a_member_that_holds_partitions_is_healthy() -> None:
    assert diagnose(US, group(member(US.client_id, 0, 1, 2, 3)), FOUR) == ""
    assert diagnose(US, group(member(US.client_id, 0, 1), member("other", 2, 3)), FOUR) == ""


def test_an_idle_member_beyond_the_partition_count_is_healthy() -> None:
    assert diagnose(US, group(member("other", 0, 1, 2, 3), member(US.client_id)), FOUR) == ""


def test_a_member_whose_assignment_is_not_told_is_healthy_while_every_partition_is_held() -> None:
    silent = {"client_id": US.client_id, "member_assignment": None}
    assert diagnose(US, group(silent, member("other", 0, 1, 2, 3)), FOUR) == ""


def test_a_process_its_stable_group_does_not_list_is_ailing() -> None:
    found = diagnose(US, group(member("other", 0, 1, 2, 3)), FOUR)
    assert found == "it is stable and does not list goldstream-judge-1"


@pytest.mark.parametrize("state", ["Empty", "Dead"])
def test_a_group_without_anybody_is_ailing(state: str) -> None:
    assert "does not list" in diagnose(US, group(state=state), FOUR)


def test_partitions_that_nobody_holds_are_an_ailment() -> None:
    assert diagnose(US, group(member(US.client_id, 0, 1, 3)), FOUR) == "nobody holds gs.attempts[2]"
    assert diagnose(US, group(member(US.client_id, 0)), FOUR) == "nobody holds gs.attempts[1] and 2 more"
    other_topic = member(US.client_id, 0, 1, 2, 3, topic="gs.prompts")
    assert "nobody holds gs.attempts[0] and 3 more" in diagnose(US, group(other_topic), FOUR)


@pytest.mark.parametrize("state", ["PreparingRebalance", "CompletingRebalance", "Assigning", "Reconciling"])
def test_a_group_that_rebalances_is_given_time(state: str) -> None:
    assert diagnose(US, group(state=state), FOUR) == ""


def test_a_group_nothing_is_known_of_and_a_topic_that_does_not_exist_are_no_ailment() -> None:
    assert diagnose(US, {}, FOUR) == ""
    assert diagnose(US, group(member(US.client_id)), {}) == ""


class FakeAdmin:
    """Tells what it is given; kafka-python's admin client to the watchdog."""

    def __init__(self, *groups: dict[str, Any]) -> None:
        self._groups = list(groups)

    def list_topics(self) -> list[str]:
        return ["gs.attempts", "something.else"]

    def describe_topics(self, topics: list[str]) -> list[dict[str, Any]]:
        partitions = [{"partition_index": number} for number in range(4)]
        return [{"name": topic, "partitions": partitions} for topic in topics]

    def describe_groups(self, groups: list[str]) -> dict[str, Any]:
        return {US.group: self._groups.pop(0)}


def test_only_an_ailment_that_lasts_ends_the_process() -> None:
    well, ill = group(member(US.client_id, 0, 1, 2, 3)), group(member("other", 0, 1, 2, 3))
    patience = watchdog_module.PATIENCE
    admin = FakeAdmin(*[ill] * (patience - 1), well, *[ill] * patience)
    watchdog = Watchdog(Settings(), [US])
    for _ in range(2 * patience - 1):
        watchdog._look(admin)
        watchdog.check()
    watchdog._look(admin)
    with pytest.raises(GoldstreamError, match="does not list goldstream-judge-1; this process exits"):
        watchdog.check()
