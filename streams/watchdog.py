"""Notices a process that looks alive and does nothing: its group is stable, but lists it no longer or holds no one
for some partition. Such a process must exit; its supervisor restarts it.

An idle member beyond the partition count is healthy: every partition has its owner.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from kafka.errors import KafkaError

from schemas.errors import BrokerError, GoldstreamError
from schemas.settings import Settings
from streams.lag import assignments
from streams.topics import connect_admin

log = logging.getLogger(__name__)

EVERY_S = 5.0
PATIENCE = 3  # findings in a row; a group may be stable for a moment between two rebalances


class Membership:
    """What one client expects of its group: to be listed, and that every partition of `topics` has an owner."""

    def __init__(self, group: str, client_id: str, topics: Sequence[str]) -> None:
        self.group = group
        self.client_id = client_id
        self.topics = list(topics)


class Watchdog:
    """A thread that looks at the groups of this process; `check` raises once one has been ailing for a while."""

    def __init__(self, settings: Settings, memberships: Sequence[Membership]) -> None:
        self.ailing = threading.Event()
        self._reason = ""
        self._settings = settings
        self._memberships = memberships
        self._found: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> Watchdog:
        """Starts watching; returns itself."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stops watching."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def check(self) -> None:
        """Raises GoldstreamError where this process must be restarted."""
        if self.ailing.is_set():
            raise GoldstreamError(self._reason)

    def _run(self) -> None:
        admin: Any = None
        while not self._stop.wait(EVERY_S):
            try:
                admin = admin or connect_admin(self._settings)
                self._look(admin)
            except (KafkaError, BrokerError) as error:
                # Without a broker nobody works; that is not this process's ailment.
                log.debug("the watchdog could not look: %s", error)
                self._found.clear()
                if admin is not None:
                    admin.close()
                    admin = None
        if admin is not None:
            admin.close()

    def _look(self, admin: Any) -> None:
        topics = sorted({topic for membership in self._memberships for topic in membership.topics})
        existing = set(admin.list_topics())
        described = admin.describe_topics([topic for topic in topics if topic in existing])
        partitions = {topic["name"]: {p["partition_index"] for p in topic["partitions"]} for topic in described}
        groups = admin.describe_groups([membership.group for membership in self._memberships])
        for membership in self._memberships:
            ailment = diagnose(membership, groups.get(membership.group, {}), partitions)
            count = self._found.get(membership.group, 0) + 1 if ailment else 0
            self._found[membership.group] = count
            if count >= PATIENCE:
                self._reason = f"group {membership.group}: {ailment}; this process exits to be restarted"
                self.ailing.set()


def diagnose(membership: Membership, group: Mapping[str, Any], partitions: Mapping[str, set[int]]) -> str:
    """Returns what is wrong with a client's membership, "" where nothing is or the group is rebalancing.

    `group` is kafka-python's description of the group, `partitions` what exists of each topic.
    """
    if group.get("group_state") not in ("Stable", "Empty", "Dead"):
        return ""
    members = group.get("members") or []
    if not any(member["client_id"] == membership.client_id for member in members):
        return f"it is {group['group_state'].lower()} and does not list {membership.client_id}"
    held = assignments(members)
    unheld = sorted((t, p) for t in membership.topics for p in partitions.get(t, ()) if (t, p) not in held)
    if unheld:
        topic, partition = unheld[0]
        return f"nobody holds {topic}[{partition}]" + (f" and {len(unheld) - 1} more" if len(unheld) > 1 else "")
    return ""
