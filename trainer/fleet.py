"""The vLLM servers of a task as rollout keeps them: who is up, what each must hold, and what nobody needs any more."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from schemas.adapters import VERSION, adapter_folder, base_fingerprint, read_manifest, served_name, verify_adapter
from schemas.errors import AdapterError, SettingsError
from schemas.faults import crash_point
from schemas.settings import Settings
from trainer.servers import VllmServer, student_servers
from trainer.sleep import sleeping_servers, wake_left_asleep

log = logging.getLogger("goldstream.rollout")


class Fleet:
    """All servers of one task; none where the student runs in process. `states` says what each was last found to be."""

    def __init__(self, settings: Settings, task: str) -> None:
        self.settings, self.task = settings, task
        self.remote = settings.task(task).student.model.startswith("hosted_vllm/")
        self.states: dict[str, str] = {}  # address -> "serves", "asleep", "down: ..." or what it refused

    def load(self, version: str) -> None:
        """Loads a version on every server that is up, and has it answer a smoke test on each.

        A server that is down or asleep gets it when it is back (`tend`). Raises AdapterError where one that is up
        refuses the adapter or fails the test, or where none is up; OSError where one breaks off.
        """
        folder = verified_folder(self.settings, self.task, version)
        servers = student_servers(self.settings.task(self.task))
        up = [server for server in servers if self._is_up(server)]
        if servers and not up:
            states = ", ".join(f"{server}: {self.states[server.root]}" for server in servers)
            raise AdapterError(f"no server of task {self.task} can take an adapter now ({states}).")
        for server in up:
            self._load(server, version, folder)

    def tend(self, needed: Sequence[str], kept: Collection[str]) -> None:
        """Loads the versions in `needed` where a server lacks them, and unloads those that are not in `kept`.

        Raises AdapterError, after all servers were looked after, where something failed.
        """
        failed: list[str] = []
        kept_names = {served_name(self.task, version) for version in (*needed, *kept) if version}
        for server in student_servers(self.settings.task(self.task)) if kept_names else ():
            if not self._is_up(server):
                continue
            try:
                names = server.names()
                for version in needed:
                    if served_name(self.task, version) not in names:
                        self._load(server, version, verified_folder(self.settings, self.task, version))
                        log.warning("%s: %s did not have %s; loaded it", self.task, server, version)
                for name in names:
                    if name not in kept_names and self._is_ours(name):
                        crash_point("rollout.before_unload")
                        server.unload(name)
                        log.info("%s: %s unloaded %s", self.task, server, name)
            except (AdapterError, OSError) as error:
                self.states[server.root] = str(error)
                failed.append(str(error))
        wake_left_asleep(self.settings, self.task)
        if failed:
            raise AdapterError("; ".join(failed))

    def _is_up(self, server: VllmServer) -> bool:
        """Tells whether a server answers and is not put to sleep for a training run; logs what changed."""
        before = self.states.get(server.root, "")
        if any(server.root in (sleeping_servers(self.settings, task) or ()) for task in self.settings.tasks):
            self.states[server.root] = "asleep"
            return False
        try:
            server.names()
        except (AdapterError, OSError) as error:
            self.states[server.root] = f"down: {error}"
            if not before.startswith("down"):
                log.warning("%s: %s; it gets its adapters when it is back", self.task, error)
            return False
        if before.startswith("down"):
            log.info("%s: %s answers again", self.task, server)
        self.states[server.root] = "serves"
        return True

    def _load(self, server: VllmServer, version: str, folder: Path) -> None:
        name = served_name(self.task, version)
        if name not in server.names():
            server.load(name, folder)
            crash_point("rollout.after_load")
        server.answer(name)

    def _is_ours(self, name: str) -> bool:
        """Tells whether a served name is a version of this task in this registry; others may share the server."""
        version = name.removeprefix(f"{self.task}-")
        return bool(VERSION.fullmatch(version)) and adapter_folder(self.settings.adapters, self.task, version).is_dir()


def verified_folder(settings: Settings, task: str, version: str) -> Path:
    """Returns a version's folder, checked against the base where that lies on this machine; raises AdapterError.

    Raises SettingsError where the student's provider loads no adapters of ours.
    """
    chosen = settings.task(task)
    provider, _, name = chosen.student.model.partition("/")
    if provider not in ("local", "hosted_vllm"):
        raise SettingsError(
            f"tasks.{task}.student.model is served by {provider!r}, which loads no adapters of ours. "
            "Serve it as local/NAME or hosted_vllm/NAME."
        )
    base = settings.local[name].path if provider == "local" else chosen.trainer.base
    folder = adapter_folder(settings.adapters, task, version)
    verify_adapter(folder, base_fingerprint(Path(base)) if base and Path(base).is_dir() else None)
    return folder


def can_serve_beside(settings: Settings, task: str, current: str, wanted: str) -> bool:
    """Tells whether the version that served until now can go on beside a new one: it is sound, and of the same base."""
    if not current:
        return True
    try:
        before = verify_adapter(adapter_folder(settings.adapters, task, current))
        after = read_manifest(adapter_folder(settings.adapters, task, wanted))
    except AdapterError as error:
        log.warning("%s: %s has no canary share and nothing to fall back to: %s", task, wanted, error)
        return False
    return before.base_sha256 == after.base_sha256
