"""All of goldstream.toml, and one task of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.errors import SettingsError
from schemas.settings.admission import NearDuplicates, Redact
from schemas.settings.budget import Budget
from schemas.settings.dashboard import Dashboard
from schemas.settings.gold import Gold
from schemas.settings.mapping import Mapping, SchemaRegistry
from schemas.settings.metrics import Metrics
from schemas.settings.models import CarryOver, LocalModel, Model
from schemas.settings.refining import Refining, Review, Strategies
from schemas.settings.rubric import Panel, Rubric
from schemas.settings.section import Role, Section, Share
from schemas.settings.streams import Intake, Kafka, Sink, Worker
from schemas.settings.tracing import Tracing
from schemas.settings.training import Gate, Rollout, Trainer, Webhook


class Task(Section, frozen=True):
    """One job the product's model does, with who attempts, judges and repairs it."""

    topics: tuple[str, ...]
    # Of the records of these topics, a task takes those that fit all of the following; the first task that fits wins.
    workloads: tuple[str, ...] = ()  # of any of these names, which may hold * and ?; empty: of any
    models: tuple[str, ...] = ()  # answered by any of these models, likewise
    where: str = ""  # a JMESPath expression that is true of the record, e.g. "source == 'helpdesk'"
    map: Mapping = Mapping()  # reads records of a shape we do not know
    sample: Share = 1.0
    per_day: Annotated[int, Meta(ge=0)] = 0  # cases of a day of the records' own clock, UTC; 0: no limit
    redact: Redact = Redact()
    near_duplicates: NearDuplicates = NearDuplicates()
    first_attempt: Literal["student", "production"] = "student"
    max_rounds: Annotated[int, Meta(ge=0)] = 3
    rubric: Rubric = Rubric()
    student: Model = Model()
    carry_over: CarryOver = CarryOver()
    judge: Model = Model()
    panel: Panel = Panel()  # how many judges' opinions a verdict takes
    refiner: Model = Model()
    strategist: Model = Model()
    refining: Refining = Refining()
    strategies: Strategies = Strategies()
    review: Review = Review()
    budget: Budget = Budget()
    trainer: Trainer = Trainer()
    gate: Gate = Gate()
    rollout: Rollout = Rollout()

    def model(self, role: Role) -> Model:
        """Returns the model settings of a role."""
        chosen: Model = getattr(self, role)
        return chosen


class Settings(Section, frozen=True, rename={"gold_set": "gold"}):
    """All of goldstream.toml."""

    state_dir: str = ".goldstream"
    kafka: Kafka = Kafka()
    intake: Intake = Intake()
    worker: Worker = Worker()
    sink: Sink = Sink()
    gold_set: Gold = Gold()  # the table [gold]; `gold` is its folder
    webhook: Webhook = Webhook()
    metrics: Metrics = Metrics()
    tracing: Tracing = Tracing()
    dashboard: Dashboard = Dashboard()
    local: dict[str, LocalModel] = {}
    map: dict[str, Mapping] = {}  # by topic; before that of a task
    schema_registry: SchemaRegistry = SchemaRegistry()
    tasks: dict[str, Task] = {}

    @property
    def state(self) -> Path:
        """The folder that holds everything Goldstream keeps on disk."""
        return Path(self.state_dir)

    @property
    def gold(self) -> Path:
        """The gold set's folder."""
        return self.state / "gold"

    @property
    def adapters(self) -> Path:
        """The adapter registry's folder."""
        return self.state / "adapters"

    def topic(self, name: str) -> str:
        """Returns the full name of one of our own topics."""
        return self.kafka.topic_prefix + name

    def task(self, name: str) -> Task:
        """Returns a task's settings; raises SettingsError for one that is not configured."""
        if name not in self.tasks:
            known = ", ".join(sorted(self.tasks)) or "none"
            raise SettingsError(f"task {name!r} is not configured; known: {known}. Add [tasks.{name}] to the settings.")
        return self.tasks[name]

    def task_of_topic(self, topic: str) -> str | None:
        """Returns the first task that reads this source topic."""
        return next((name for name, task in self.tasks.items() if topic in task.topics), None)

    def mapping(self, topic: str) -> Mapping:
        """Returns how records of a topic are mapped: as said for the topic, else by the first task that reads it so."""
        of_tasks = (task.map for task in self.tasks.values() if topic in task.topics and task.map.expressions())
        return self.map.get(topic) or next(of_tasks, Mapping())

    def source_topics(self) -> list[str]:
        """Returns the product's log topics, in the order of the tasks."""
        return list(dict.fromkeys(topic for task in self.tasks.values() for topic in task.topics))

    def pipeline_version(self, task: str) -> str:
        """Returns a short hash of everything that decides what happens to a case of this task."""
        return hashlib.sha256(msgspec.json.encode(self.tasks[task])).hexdigest()[:12]
