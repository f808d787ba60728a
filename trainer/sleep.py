"""One GPU for vLLM and the trainer: the student's servers sleep while an adapter is trained.

    <state>/trainer/asleep/<task>.json    which servers a run has put to sleep, and what they answered before

The note is written before the first server sleeps and removed after the last one is awake. Where it stays, its run was
killed: the next trainer or rollout, whichever comes first, wakes the servers. The student's cases wait meanwhile: a
sleeping server takes calls and does not answer, so the breaker of its endpoint opens and holds them (agents.models).
"""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from schemas.adapters import adapter_folder, served_name
from schemas.errors import AdapterError, GoldstreamError, SetupError
from schemas.faults import crash_point
from schemas.settings import Settings
from trainer.lease import lease
from trainer.registry import list_adapters
from trainer.servers import VllmServer, student_servers

log = logging.getLogger("goldstream.sleep")

WAKE_TRIES, WAKE_PAUSE_S = 3, 1.0

Answers = dict[str, dict[str, str]]  # server -> model or adapter -> what it answered before it slept


@contextmanager
def servers_asleep(settings: Settings, task: str) -> Iterator[None]:
    """Lets the servers of a task's student sleep during a block, where trainer.share_gpu says so.

    1. ask every model and adapter of each server something, and note that;
    2. put the servers to sleep; one that does not answer holds no GPU memory we could ask back;
    3. after the block, however it ends, free this process's GPU memory and wake them (`wake_servers`).

    The caller holds the task's lease. Raises SetupError where a server cannot sleep; those asleep by then are awake
    again.
    """
    if not settings.task(task).trainer.share_gpu:
        yield
        return
    wake_left_asleep(settings, task, lease_held=True)
    servers = student_servers(settings.task(task))
    answers: Answers = {}
    for server in servers:  # 1
        try:
            answers[server.root] = {name: server.answer(name) for name in server.names()}
        except (AdapterError, OSError) as error:
            log.warning("%s: not put to sleep: %s", task, error)
    _write_note(settings, task, answers)
    try:
        for server in servers:  # 2
            if server.root not in answers:
                continue
            try:
                server.sleep()
            except (AdapterError, OSError) as error:
                if _is_surely_awake(server):
                    del answers[server.root]
                    _write_note(settings, task, answers)
                raise SetupError(
                    f"trainer.share_gpu is set, and {error} Or unset it, and give the trainer a device of its own."
                ) from error
            log.info("%s: %s sleeps", task, server)
            crash_point("sleep.asleep")
        yield
    finally:  # 3
        _free_gpu()
        for text in wake_servers(settings, task):
            log.error("%s: %s Rollout goes on trying.", task, text)


def wake_servers(settings: Settings, task: str) -> list[str]:
    """Wakes the servers that the note of a task names, and removes it once all are awake; returns what went wrong.

    A server that another task's run also keeps asleep is left to that one. An adapter that answers otherwise than
    before is loaded again: waking has been seen to lose adapters without an error (vLLM issue 53888).
    """
    answers = sleeping_servers(settings, task)
    if answers is None:
        return []
    others = {root for other in settings.tasks if other != task for root in sleeping_servers(settings, other) or ()}
    asleep: list[str] = []
    for server in student_servers(settings.task(task)):
        if server.root not in answers or server.root in others:
            continue
        try:
            _wake(server)
            log.info("%s: %s is awake", task, server)
        except ConnectionError as error:  # it sleeps no more: it is down, and rollout looks after it
            log.warning("%s: %s", task, error)
            continue
        except GoldstreamError as error:
            asleep.append(str(error))
            continue
        try:
            _check_answers(settings, task, server, answers[server.root])
        except (GoldstreamError, OSError) as error:
            log.error("%s: %s", task, error)
    if not asleep:
        _note_path(settings, task).unlink(missing_ok=True)
    return asleep


def wake_left_asleep(settings: Settings, task: str, *, lease_held: bool = False) -> None:
    """Wakes servers whose trainer was killed: there is a note, and nobody holds the task's lease.

    Raises AdapterError where one does not wake; the note stays then.
    """
    if sleeping_servers(settings, task) is None:
        return
    asleep: list[str] = []
    if lease_held:
        asleep = wake_servers(settings, task)
    else:
        with lease(settings.adapters / task / "lease", threading.Event(), wait=False) as held:
            if held is not None:
                log.warning("%s: a run was killed while the model servers slept; waking them", task)
                asleep = wake_servers(settings, task)
    if asleep:
        raise AdapterError("; ".join(asleep))


def sleeping_servers(settings: Settings, task: str) -> Answers | None:
    """Returns the servers a run of this task has put to sleep, with their answers before; None where there is none."""
    try:
        return msgspec.json.decode(_note_path(settings, task).read_bytes(), type=Answers)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError:  # ours alone to write: wake whatever there is
        return {server.root: {} for server in student_servers(settings.task(task))}


def _is_surely_awake(server: VllmServer) -> bool:
    try:
        return not server.is_asleep()
    except AdapterError:
        return True  # it knows no sleep
    except OSError:
        return False


def _wake(server: VllmServer) -> None:
    for left in reversed(range(WAKE_TRIES)):
        try:
            server.wake()
            return
        except AdapterError:
            if not left:
                raise
            time.sleep(WAKE_PAUSE_S)


def _check_answers(settings: Settings, task: str, server: VllmServer, before: dict[str, str]) -> None:
    """Asks again what was asked before the sleep; raises AdapterError where loading anew does not help."""
    folders = {
        served_name(task, manifest.version): adapter_folder(settings.adapters, task, manifest.version)
        for manifest in list_adapters(settings.adapters, task)
    }
    for name, expected in before.items():
        if server.answer(name) == expected:
            continue
        if name in folders:
            server.unload(name)
            server.load(name, folders[name])
            if server.answer(name) == expected:
                log.warning("%s: %s answered otherwise after %s woke; loaded it again", task, name, server)
                continue
        raise AdapterError(f"{name} answers otherwise since {server} woke: its weights may be lost. Start it anew.")


def _free_gpu() -> None:
    """Gives the memory that PyTorch keeps for itself back to the device."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def _write_note(settings: Settings, task: str, answers: Answers) -> None:
    path = _note_path(settings, task)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(msgspec.json.encode(answers))
    temporary.replace(path)


def _note_path(settings: Settings, task: str) -> Path:
    return settings.state / "trainer" / "asleep" / f"{task}.json"
