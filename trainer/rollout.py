"""Rollout: makes the version that should serve the one that serves, in a process of its own.

Watches the promotion log of the registry; the model server loads an adapter under a versioned name, answers a smoke
test, and only then one record on gs.adapters switches every worker. Imports no torch, so that it stays small.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol
from urllib import error as urllib_error
from urllib import request as urllib_request

import msgspec

from schemas.adapters import AdapterRecord, adapter_folder, base_fingerprint, served_name, verify_adapter
from schemas.errors import AdapterError, BrokerError, GoldstreamError, SettingsError
from schemas.faults import crash_point
from schemas.kafka import connect
from schemas.settings import Model, Settings
from schemas.topics import ADAPTERS
from trainer.registry import lease, promotions

log = logging.getLogger("goldstream.rollout")

POLL_S = 1.0
CHECK_SERVER_S = 15.0  # a model server that restarted has forgotten its adapters
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 60.0
KAFKA_TIMEOUT_S = 30.0
HTTP_TIMEOUT_S = 60.0  # loading an adapter reads it from disk


class RecordLog(Protocol):
    """Where adapter records are kept: the topic gs.adapters, or a list in tests."""

    def read(self) -> list[AdapterRecord]:
        """Returns every record now there, in order."""

    def append(self, record: AdapterRecord) -> None:
        """Adds a record and returns once it is durable."""


def run_rollout(
    settings: Settings, *, stop: threading.Event, records: RecordLog | None = None, poll_s: float = POLL_S
) -> None:
    """Runs until `stop`. A second rollout waits for the first; whatever fails is logged and tried again.

    `records` is by default the topic gs.adapters. Ends with BrokerError where a newer rollout writes to it.
    """
    records = records or KafkaRecords(settings)
    with lease(settings.adapters / "rollout.lease", stop) as descriptor:
        if descriptor is None:
            return
        known = _read_patiently(records, stop)
        if known is None:
            return
        epoch = _next_epoch(descriptor, known)
        log.info("rollout watches %s with lease epoch %d", ", ".join(settings.tasks), epoch)
        writer = _Writer(records, known, epoch)
        tasks = [_TaskRollout(settings, name, writer) for name in settings.tasks]
        while not stop.is_set():
            for task in tasks:
                task.poll()
            stop.wait(poll_s)


def latest_records(records: Sequence[AdapterRecord]) -> dict[str, AdapterRecord]:
    """Returns the record that counts for each task: the highest (lease epoch, sequence)."""
    latest: dict[str, AdapterRecord] = {}
    for record in records:
        if record.supersedes(latest.get(record.task)):
            latest[record.task] = record
    return latest


class NewerRollout(BrokerError):
    """A rollout with a higher lease epoch has written; this one must end."""


class KafkaRecords:
    """gs.adapters as a RecordLog: one record per switch, keyed by task."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.topic = settings.topic(ADAPTERS)

    def read(self) -> list[AdapterRecord]:
        """Reads the topic to its end, without a group; raises BrokerError where it cannot."""
        from kafka import KafkaConsumer, TopicPartition  # trainer/ imports without Kafka
        from kafka.errors import KafkaError

        try:
            consumer = connect(
                KafkaConsumer,
                self.settings,
                group_id=None,
                isolation_level="read_committed",
                enable_auto_commit=False,
                allow_auto_create_topics=False,
            )
            try:
                return self._read(consumer, TopicPartition)
            finally:
                consumer.close()
        except KafkaError as error:
            raise BrokerError(f"{self.topic} cannot be read: {type(error).__name__}: {error}") from error

    def _read(self, consumer: Any, partition_type: Callable[[str, int], Any]) -> list[AdapterRecord]:
        partitions = [partition_type(self.topic, p) for p in sorted(consumer.partitions_for_topic(self.topic) or ())]
        if not partitions:
            raise BrokerError(f"the topic {self.topic} does not exist. `goldstream topics` makes it.")
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        for partition, first in consumer.beginning_offsets(partitions).items():
            consumer.seek(partition, first)
        found: list[AdapterRecord] = []
        deadline = time.monotonic() + KAFKA_TIMEOUT_S
        # Positions, not records, tell the end: an empty or compacted topic has fewer records than offsets.
        while any(consumer.position(p) < ends[p] for p in partitions):
            if time.monotonic() > deadline:
                raise BrokerError(f"{self.topic} was not read to its end within {KAFKA_TIMEOUT_S:.0f} s")
            for batch in consumer.poll(timeout_ms=500).values():
                for message in batch:
                    try:
                        found.append(msgspec.json.decode(message.value or b"", type=AdapterRecord))
                    except msgspec.DecodeError as error:
                        log.warning("%s offset %d is no adapter record: %s", self.topic, message.offset, error)
        return found

    def append(self, record: AdapterRecord) -> None:
        """Produces one record and waits until every in-sync replica has it; raises BrokerError where that fails."""
        from kafka import KafkaProducer
        from kafka.errors import KafkaError

        try:
            producer = connect(
                KafkaProducer,
                self.settings,
                acks="all",
                enable_idempotence=True,
                allow_auto_create_topics=False,
                max_block_ms=int(KAFKA_TIMEOUT_S * 1000),
            )
            try:
                sent = producer.send(self.topic, key=record.task.encode(), value=msgspec.json.encode(record))
                sent.get(timeout=KAFKA_TIMEOUT_S)
            finally:
                producer.close(timeout=KAFKA_TIMEOUT_S)
        except KafkaError as error:
            raise BrokerError(f"{self.topic} did not take a record: {type(error).__name__}: {error}") from error


class _Writer:
    """The one who may append: numbers records and notices a newer rollout."""

    def __init__(self, records: RecordLog, known: Sequence[AdapterRecord], epoch: int) -> None:
        self.records, self.epoch, self.sequence = records, epoch, 0
        self.latest = latest_records(known)

    def append(self, task: str, version: str, *, served_as: str, reason: str, previous: str) -> AdapterRecord:
        self.sequence += 1
        record = AdapterRecord(
            task=task,
            version=version,
            lease_epoch=self.epoch,
            sequence=self.sequence,
            at_ms=int(time.time() * 1000),
            reason=reason,
            served_as=served_as,
            previous=previous,
        )
        self.records.append(record)
        self.latest[task] = record
        return record

    def refresh(self) -> None:
        """Reads the records again: an append that failed may have arrived, or another rollout may have written."""
        self.latest = latest_records(self.records.read())
        newest = max((record.lease_epoch for record in self.latest.values()), default=0)
        if newest > self.epoch:
            raise NewerRollout(f"a rollout with lease epoch {newest} writes too; this one, with {self.epoch}, ends.")


class _TaskRollout:
    """One task's switches, with backoff after a failure."""

    def __init__(self, settings: Settings, task: str, writer: _Writer) -> None:
        self.settings, self.task, self.writer = settings, task, writer
        student = settings.task(task).student
        self.provider = student.model.partition("/")[0]
        self.server = _Server(student) if self.provider == "hosted_vllm" else None
        self.retry_s, self.retry_at, self.check_at = FIRST_RETRY_S, 0.0, 0.0

    def poll(self) -> None:
        """Switches where another version should serve; nothing switches unless every step succeeds."""
        if time.monotonic() < self.retry_at:
            return
        try:
            promoted = promotions(self.settings.adapters, self.task)
            serving = self.writer.latest.get(self.task)
            wanted = promoted[-1].version if promoted else ""
            if wanted != (serving.version if serving else ""):
                self._switch(wanted, f"{promoted[-1].by}: {promoted[-1].reason}" if promoted else "no promotion left")
            elif self.server and serving and serving.served_as and time.monotonic() > self.check_at:
                self.check_at = time.monotonic() + CHECK_SERVER_S
                if not self.server.has(serving.served_as):
                    self.server.load(serving.served_as, self._verified(serving.version))
                    log.warning("%s: the server had lost %s; loaded it again", self.task, serving.served_as)
            self.retry_s = FIRST_RETRY_S
        except NewerRollout:
            raise
        except (GoldstreamError, OSError) as error:
            log.error("%s: nothing switched (next try after %.0f s): %s", self.task, self.retry_s, error)
            self.retry_at = time.monotonic() + self.retry_s
            self.retry_s = min(self.retry_s * 2, LAST_RETRY_S)

    def _switch(self, wanted: str, reason: str) -> None:
        """Brings `wanted` into service.

        1. read the records again: the last attempt may have gone further than it knew;
        2. verify the folder;
        3. load it and ask it something, under its own name, beside the one that serves;
        4. append the record: from here on it serves;
        5. unload the version before the one just replaced, which calls under way may still use.
        """
        self.writer.refresh()  # 1
        serving = self.writer.latest.get(self.task)
        current = serving.version if serving else ""
        if current == wanted:
            return
        served_as = ""
        if wanted:
            folder = self._verified(wanted)  # 2
            if self.server:  # 3
                served_as = served_name(self.task, wanted)
                if not self.server.has(served_as):
                    self.server.load(served_as, folder)
                self.server.smoke_test(served_as)
        crash_point("rollout.before_record")
        self.writer.append(self.task, wanted, served_as=served_as, reason=reason, previous=current)  # 4
        crash_point("rollout.after_record")
        log.info("%s: %s serves now, after %s", self.task, wanted or "the base", current or "the base")
        oldest = serving.previous if serving else ""
        if self.server and oldest not in ("", wanted, current):  # 5
            try:
                self.server.unload(served_name(self.task, oldest))
            except (AdapterError, OSError) as error:
                log.warning("%s: %s stays loaded: %s", self.task, oldest, error)

    def _verified(self, version: str) -> Path:
        """Returns a version's folder, checked against the base where that lies on this machine."""
        if self.provider not in ("local", "hosted_vllm"):
            raise SettingsError(
                f"tasks.{self.task}.student.model is served by {self.provider!r}, which loads no adapters of ours. "
                "Serve it as local/NAME or hosted_vllm/NAME."
            )
        student = self.settings.task(self.task).student.model
        name = student.partition("/")[2]
        base = (
            self.settings.local[name].path if self.provider == "local" else self.settings.task(self.task).trainer.base
        )
        folder = adapter_folder(self.settings.adapters, self.task, version)
        verify_adapter(folder, base_fingerprint(Path(base)) if base else None)
        return folder


class _Server:
    """The few calls a vLLM server needs to switch adapters; it must see the registry under the same path."""

    def __init__(self, student: Model) -> None:
        self.root = student.api_base.rstrip("/").removesuffix("/v1")
        self.key_env = student.api_key_env

    def has(self, name: str) -> bool:
        """Tells whether the server serves a model or adapter of this name."""
        listed = self._call("/v1/models", None).get("data") or []
        return any(model.get("id") == name for model in listed)

    def load(self, name: str, folder: Path) -> None:
        """Loads an adapter under `name`."""
        self._call("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder.resolve())})

    def unload(self, name: str) -> None:
        """Unloads an adapter."""
        self._call("/v1/unload_lora_adapter", {"lora_name": name})

    def smoke_test(self, name: str) -> None:
        """Asks the adapter for a few tokens; raises AdapterError where it gives none."""
        question = {"role": "user", "content": "Say OK."}
        off = {"enable_thinking": False}
        body = {"model": name, "messages": [question], "max_tokens": 8, "temperature": 0, "chat_template_kwargs": off}
        answer = self._call("/v1/chat/completions", body)
        try:
            tokens = answer["usage"]["completion_tokens"]
            answered = "content" in answer["choices"][0]["message"] and tokens > 0
        except (KeyError, IndexError, TypeError):
            answered = False
        if not answered:
            raise AdapterError(f"{name} failed its smoke test: the server's answer holds no completion.")

    def _call(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """Makes one call; raises AdapterError for an error status, OSError where nobody answers."""
        if not self.root:
            raise SettingsError("the student's api_base is empty; set it to the vLLM server's address, ending in /v1.")
        headers = {"Content-Type": "application/json"}
        if self.key_env and os.environ.get(self.key_env):
            headers["Authorization"] = f"Bearer {os.environ[self.key_env]}"
        data = None if body is None else json.dumps(body).encode()
        call = urllib_request.Request(self.root + path, data=data, headers=headers)
        try:
            with urllib_request.urlopen(call, timeout=HTTP_TIMEOUT_S) as response:
                text: bytes = response.read()
        except urllib_error.HTTPError as error:
            detail = error.read()[:300].decode("utf-8", "replace")
            raise AdapterError(f"the model server answered {error.code} to {path}: {detail}") from error
        except HTTPException as error:
            raise ConnectionError(f"the model server broke off its answer to {path}: {error}") from error
        try:
            answer = json.loads(text)
        except ValueError:  # the load calls answer in plain text
            return {}
        return answer if isinstance(answer, dict) else {}


def _read_patiently(records: RecordLog, stop: threading.Event) -> list[AdapterRecord] | None:
    """Reads the records once Kafka answers; None where stopped before."""
    while not stop.is_set():
        try:
            return records.read()
        except (GoldstreamError, OSError) as error:
            log.error("waiting for the adapter records: %s", error)
            stop.wait(FIRST_RETRY_S)
    return None


def _next_epoch(descriptor: int, known: Sequence[AdapterRecord]) -> int:
    """Returns this acquisition's lease epoch and keeps it in the lease file.

    Above the file's and above every record's, so that a lost state folder cannot make workers ignore us.
    """
    text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    epoch = 1 + max([int(text) if text.isdigit() else 0, *(record.lease_epoch for record in known)])
    os.pwrite(descriptor, f"{epoch:020d}\n".encode(), 0)  # fixed width: a shorter number leaves no old digits
    os.fsync(descriptor)
    return epoch
