"""Every setting, typed and described, in one place.

Precedence: command-line flag (`--set a.b=c`), environment (GOLDSTREAM_A__B=c), goldstream.toml,
default. An unknown key is an error. Loaded once by goldstream.py and passed down.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from schemas.case import Severity
from schemas.errors import SettingsError

Role = Literal["student", "judge", "refiner", "strategist"]
ROLES: tuple[Role, ...] = ("student", "judge", "refiner", "strategist")
TASK_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"  # becomes a folder name: no dots, no slashes
_SECRET_KEY = re.compile(r"(?i)(^|[_-])(api[_-]?key|secret|password|authorization|(access|auth|bearer)[_-]token)$")

Positive = Annotated[int, Meta(gt=0)]
Seconds = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
NotNegative = Annotated[float, Meta(ge=0, le=1e9)]
Percentiles = Annotated[tuple[Annotated[float, Meta(ge=0, le=100)], ...], Meta(min_length=1)]
# The name of a variable that holds a secret. A secret put here by mistake is refused, and not repeated in the error.
VariableName = Annotated[str, Meta(pattern=r"^([A-Z_][A-Z0-9_]{0,63})?$")]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of goldstream.toml; an unknown key in it is an error."""


class Kafka(_Section, frozen=True):
    """How every client of ours reaches Kafka, and the topics it makes there."""

    bootstrap_servers: str = "local"  # "local": the broker of `goldstream broker start`
    topic_prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{0,80}$")] = "gs."
    partitions: Positive = 4  # of our own topics; that of gs.outcomes is fixed once it exists
    replication: Positive = 1
    retention_hours: Positive = 168
    max_message_bytes: Positive = 1_000_000  # a case larger than this is dead with reason too_large
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    sasl_username: str = ""
    sasl_password_env: VariableName = "GOLDSTREAM_SASL_PASSWORD"  # name of the variable, never the secret
    ssl_cafile: str = ""  # PEM file of the authority that signed the brokers' certificates; "": the system's


class Intake(_Section, frozen=True):
    """What is read from the product's log topics."""

    start_at: Annotated[str, Meta(pattern=r"^(latest|earliest|\d{4}-\d\d-\d\d.*)$")] = "latest"
    holdout_share: Share = 0.1
    split_key: str = "goldstream"  # keys the hash that decides train or holdout; keep it once chosen
    max_record_bytes: Positive = 1_000_000
    poll_records: Positive = 500


class Worker(_Section, frozen=True):
    """How many cases a stage works on at once, and for how long."""

    cases_in_flight: Positive = 64
    event_deadline_s: Annotated[float, Meta(gt=0, lt=60)] = 45.0  # all calls of one event; under the rebalance timeout
    # What SIGTERM leaves the calls in flight to end; longer ones are cancelled and made again.
    drain_s: Annotated[float, Meta(ge=0, le=300)] = 8.0
    retry_delays_s: tuple[Positive, ...] = (10, 60, 600)  # one gs.retry.<delay>s topic each, tried in order
    breaker_failures: Positive = 5  # cases in a row that must fail before a model counts as down and its cases wait
    breaker_longest_s: Seconds = 60.0  # a model that is down is asked at least this often whether it is back
    stages: tuple[Role, ...] = ROLES


class Sink(_Section, frozen=True):
    """When outcomes become a Parquet file."""

    rows_per_file: Positive = 5000
    seconds_per_file: Seconds = 60.0  # every file costs each reader a millisecond, until compaction


class Model(_Section, frozen=True):
    """One model as LiteLLM addresses it."""

    model: str = ""  # local/NAME, scripted/NAME, hosted_vllm/NAME, or any LiteLLM model string
    api_base: str = ""
    api_key_env: VariableName = ""  # name of the variable that holds the key
    temperature: Annotated[float, Meta(ge=0)] = 0.0
    max_tokens: Positive = 1024
    timeout_s: Seconds = 30.0  # hard deadline of one call
    retries: Annotated[int, Meta(ge=0)] = 2  # within the event's deadline, with backoff
    input_cost_per_token: float | None = None  # for models LiteLLM has no price for
    output_cost_per_token: float | None = None
    extra: dict[str, Any] = {}  # passed to LiteLLM as it is


class Rule(_Section, frozen=True):
    """One rule of a rubric; an answer without a violation of it earns its points."""

    id: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    text: str
    severity: Severity = "major"
    points: Annotated[float, Meta(gt=0)] = 1.0


class Rubric(_Section, frozen=True):
    """What makes an answer acceptable."""

    verifier: str = ""  # "package.module:function" of (messages, answer) -> list of Violation
    rules: tuple[Rule, ...] = ()
    pass_mark: float | None = None  # default: every point
    guidance: str = ""  # free text for a model judge

    @property
    def max_score(self) -> float:
        """The score of an answer that breaks no rule."""
        return sum(rule.points for rule in self.rules)

    def version(self) -> str:
        """Returns a short hash that changes whenever the rubric does."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:12]


class Trainer(_Section, frozen=True):
    """How a task's adapter is trained. The defaults are those published with RGT."""

    enabled: bool = True
    base: str = ""  # folder of the student's base model; not needed where the student is local/NAME
    min_corrected_rows: Positive = 200  # new gold whose first attempt failed, since the last run
    max_age_hours: Annotated[float, Meta(ge=0)] = 0.0  # 0: off. A run also starts for corrected rows older than this,
    min_rows_at_age: Positive = 20  # where there are this many of them
    every_hours: Annotated[float, Meta(ge=0)] = 0.0  # 0: off. A run also starts this long after the last one
    daily_at: Annotated[str, Meta(pattern=r"^(([01]\d|2[0-3]):[0-5]\d)?$")] = ""  # "": off. And at this time, UTC
    quiet_s: Annotated[float, Meta(ge=0)] = 0.0  # a due run waits until no gold has come for this long
    recipe: Literal["rgt", "isft", "sft", "rejection", "on_policy"] = "rgt"  # which rows, and what of each
    pair_weights: tuple[NotNegative, NotNegative] = (1.0, 1.0)  # loss weight of pair A and of pair B; 0 leaves it out
    continue_from: Literal["base", "incumbent"] = "base"  # where a run starts; either way it sees all gold so far
    objective: Literal["sft", "iw-sft", "iw-sft-step", "iw-sft-ema", "dft"] = "sft"  # how trained tokens are weighted
    weight_temperature: NotNegative | None = None  # of the log-ratio; unset: 10 for iw-sft-ema, else 1
    weight_min: NotNegative | None = None  # unset: 0.2 for iw-sft-step, else 0
    weight_max: NotNegative | None = None  # unset: 16 for iw-sft, 1.8 for iw-sft-step, 1000 for iw-sft-ema
    normalise_weights: bool | None = None  # to mean 1 over each batch; unset: only for iw-sft-ema
    ema_decay: Share = 0.9  # iw-sft-ema: what the average keeps of itself at each step
    quality: Literal["off", "top_sets", "score"] = "off"  # SFT(Q): how the judge's score decides what is repeated
    quality_percentiles: Percentiles = (90.0, 95.0, 98.0)  # top_sets: where each of the nested sets begins
    quality_sharpness: NotNegative = 4.0  # score: drawn in proportion to exp(sharpness x score), scores from 0 to 1
    rank: Positive = 256
    alpha: Positive = 32
    learning_rate: Annotated[float, Meta(gt=0)] = 2e-4  # constant
    dropout: Share = 0.0
    epochs: Positive = 3  # the publication leaves it open
    batch_size: Positive = 16  # cases; the publication leaves it open
    strategy_weight: Annotated[float, Meta(ge=0)] = 1.0  # loss weight of the strategy tokens in pair B
    max_length: Positive = 4096
    seed: int = 0
    threads: Annotated[int, Meta(ge=0)] = 0  # 0: torch decides
    share_prompts: bool = True  # the pairs of a case are forwarded in one row that holds their prompt once
    forward_tokens: Annotated[int, Meta(ge=0)] = 0  # of one forward pass; 0: 2048 on a CPU, 16384 on a GPU
    dtype: Literal["auto", "fp32", "bf16"] = "auto"  # of the base; auto: bf16 on a GPU. The adapter is in fp32
    gradient_checkpointing: bool = False  # a third more work for a fraction of the memory
    checkpoint_every_s: Annotated[float, Meta(ge=0)] = 300.0  # 0: off, and a killed run begins anew
    processes: Annotated[int, Meta(ge=0)] = 1  # that share a run's batches, one a GPU; 0: as many as there are GPUs
    share_gpu: bool = False  # the student's vLLM servers sleep while an adapter is trained


class Gate(_Section, frozen=True):
    """When a candidate adapter replaces the incumbent."""

    min_holdout: Positive = 50  # fewer holdout cases: no decision, no promotion
    max_holdout: Positive = 200
    test: Literal["mcnemar", "bootstrap"] = "mcnemar"  # on passes, or on mean scores where the rubric is graded
    min_gain: Annotated[float, Meta(ge=-1, le=1)] = 0.0  # the candidate's gain, a share of 1, must exceed this
    significance: Annotated[float, Meta(gt=0, lt=1)] = 0.05  # a significant loss always refuses
    resamples: Annotated[int, Meta(ge=1000, le=1_000_000)] = 10_000  # of the bootstrap
    thinking: bool = False  # ask both with thinking on too; reported, never decisive
    thinking_tokens: Positive = 512  # what an answer may be longer by then
    report_examples: Annotated[int, Meta(ge=0, le=100)] = 8  # answers shown in gate.html; 0 keeps texts out of it
    promotion: Literal["auto", "manual", "shadow"] = "auto"  # shadow: judged, and never switched by itself


class Webhook(_Section, frozen=True):
    """Who is told of promotions, rollbacks and refusals."""

    url_env: VariableName = ""  # name of the variable that holds the URL, which is a secret; "": nobody is told
    timeout_s: Seconds = 5.0  # of one attempt
    retries: Annotated[int, Meta(ge=0, le=10)] = 3  # with backoff; then the message is dropped and logged


class Rollout(_Section, frozen=True):
    """How a promoted adapter reaches the task's servers, and how its first cases are watched."""

    servers: tuple[str, ...] = ()  # every vLLM server, where student.api_base is a load balancer before them
    canary_share: Annotated[float, Meta(ge=0, le=0.5)] = 0.1  # of cases, stays on the version before; 0: nobody watches
    watch_cases: Positive = 300  # canary cases without a significant drop, after which all go to the new version
    significance: Annotated[float, Meta(gt=0, lt=1)] = 0.01  # chance of ever taking back a version that is as good
    min_drop: Share = 0.02  # of the first-attempt pass rate; a smaller one takes nothing back
    timeout_s: Seconds = 60.0  # of one call to a server; loading an adapter reads it from disk


class Task(_Section, frozen=True):
    """One job the product's model does, with who attempts, judges and repairs it."""

    topics: tuple[str, ...]
    sample: Share = 1.0
    first_attempt: Literal["student", "production"] = "student"
    max_rounds: Annotated[int, Meta(ge=0)] = 3
    rubric: Rubric = Rubric()
    student: Model = Model()
    judge: Model = Model()
    refiner: Model = Model()
    strategist: Model = Model()
    trainer: Trainer = Trainer()
    gate: Gate = Gate()
    rollout: Rollout = Rollout()

    def model(self, role: Role) -> Model:
        """Returns the model settings of a role."""
        chosen: Model = getattr(self, role)
        return chosen


class LocalModel(_Section, frozen=True):
    """A model folder served in process under the model string local/NAME."""

    path: str
    max_batch: Positive = 64
    threads: Annotated[int, Meta(ge=0)] = 0


class Settings(_Section, frozen=True):
    """All of goldstream.toml."""

    state_dir: str = ".goldstream"
    kafka: Kafka = Kafka()
    intake: Intake = Intake()
    worker: Worker = Worker()
    sink: Sink = Sink()
    webhook: Webhook = Webhook()
    local: dict[str, LocalModel] = {}
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

    def source_topics(self) -> list[str]:
        """Returns the product's log topics, in the order of the tasks."""
        return list(dict.fromkeys(topic for task in self.tasks.values() for topic in task.topics))

    def pipeline_version(self, task: str) -> str:
        """Returns a short hash of everything that decides what happens to a case of this task."""
        return hashlib.sha256(msgspec.json.encode(self.tasks[task])).hexdigest()[:12]


def load_settings(
    path: Path | None = None, overrides: Iterable[str] = (), environ: Mapping[str, str] = os.environ
) -> Settings:
    """Reads settings from `path` (default ./goldstream.toml if there), the environment and `overrides`.

    `overrides` are "section.key=value" texts. Raises SettingsError naming the key, what was found and expected.
    """
    chosen = path or Path(environ.get("GOLDSTREAM_CONFIG", "goldstream.toml"))
    table: dict[str, Any] = {}
    if chosen.exists():
        try:
            table = tomllib.loads(chosen.read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{chosen} is not valid TOML: {error}. Mend that line and run again.") from error
    elif path is not None:
        raise SettingsError(f"settings file {path} does not exist. `goldstream init` writes one to start from.")
    texts: dict[str, Any] = {}
    for name, value in environ.items():
        if name.startswith("GOLDSTREAM_") and "__" in name:
            _put(texts, name.removeprefix("GOLDSTREAM_").lower().split("__"), value)
    if "GOLDSTREAM_STATE_DIR" in environ:
        _put(texts, ["state_dir"], environ["GOLDSTREAM_STATE_DIR"])
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise SettingsError(f"--set {override!r}: expected section.key=value, for example kafka.partitions=8")
        _put(texts, key.split("."), value)
    _merge(table, texts)
    try:
        # Texts from flags and the environment need lax conversion; TOML's own types pass through it unchanged.
        settings = msgspec.convert(table, Settings, strict=not texts)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{chosen}: {_readable(str(error))}") from error
    _check(settings, chosen)
    return settings


def _put(table: dict[str, Any], keys: list[str], value: str) -> None:
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise SettingsError(f"{'.'.join(keys)}: {key} is set to a value elsewhere and cannot hold keys too")
    if value[:1] in "[{" and value[-1:] in "]}":
        try:
            table[keys[-1]] = msgspec.json.decode(value)
            return
        except msgspec.DecodeError:
            pass
    table[keys[-1]] = value


def _merge(table: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(table.get(key), dict):
            _merge(table[key], value)
        else:
            table[key] = value


def _readable(error: str) -> str:
    """Turns msgspec's text into ours: the key first."""
    text, _, where = error.partition(" - at `$")
    place = where.rstrip("`").lstrip(".") or "top level"
    unknown = re.search(r"unknown field `([^`]+)`", text)
    if unknown:
        place = "" if place == "top level" else place + "."
        return f"unknown key {place}{unknown.group(1)}. Remove it or correct its spelling; README.md lists the keys."
    if place.endswith("_env"):
        return f"{place}: expected the name of a variable (A-Z, 0-9, _) that holds the secret, not the secret itself."
    return f"{place}: {text}"


def _check(settings: Settings, path: Path) -> None:
    """Checks what the types cannot say."""
    if re.search(r"[@/?]", settings.kafka.bootstrap_servers):  # its text is in errors and process lists
        raise SettingsError(
            f"{path}: kafka.bootstrap_servers: expected HOST:PORT,... and nothing else. A user name goes to "
            "kafka.sasl_username, its password into the variable that kafka.sasl_password_env names."
        )
    for name, task in settings.tasks.items():
        if not re.fullmatch(TASK_NAME, name):
            raise SettingsError(
                f"{path}: task name {name!r} cannot be used: it becomes a folder name. Use lower-case letters, "
                "digits, - and _, beginning with a letter or digit."
            )
        if not task.topics:
            raise SettingsError(f"{path}: tasks.{name}.topics is empty; name at least one log topic to read.")
        for topic in task.topics:
            if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", topic):
                raise SettingsError(f"{path}: tasks.{name}.topics: {topic!r} is no Kafka topic name.")
            if settings.kafka.topic_prefix and topic.startswith(settings.kafka.topic_prefix):
                raise SettingsError(f"{path}: tasks.{name}.topics: {topic!r} has our own prefix; read the product's.")
        ids = [rule.id for rule in task.rubric.rules]
        if len(ids) != len(set(ids)):
            raise SettingsError(f"{path}: tasks.{name}.rubric.rules: rule ids must differ from each other: {ids}")
        if not ids:
            raise SettingsError(f"{path}: tasks.{name}.rubric has no rules; the judge needs at least one.")
        mark = task.rubric.pass_mark
        if mark is not None and not 0 < mark <= task.rubric.max_score:
            raise SettingsError(
                f"{path}: tasks.{name}.rubric.pass_mark is {mark}; expected above 0 and at most "
                f"{task.rubric.max_score}, the sum of the rules' points."
            )
        if not task.rubric.verifier and not task.judge.model:
            raise SettingsError(f"{path}: tasks.{name} has no judge: set rubric.verifier or judge.model.")
        _check_servers(task, f"{path}: tasks.{name}")
        for role in ROLES:
            _check_secrets(task.model(role), f"{path}: tasks.{name}.{role}")
            model = task.model(role).model
            if not model and role != "judge":
                raise SettingsError(f"{path}: tasks.{name}.{role}.model is missing; set a LiteLLM model string.")
            if model.startswith("local/") and model.removeprefix("local/") not in settings.local:
                table = model.replace("/", ".")
                raise SettingsError(f"{path}: tasks.{name}.{role}.model is {model!r}, but there is no [{table}].")


def _check_servers(task: Task, where: str) -> None:
    """Checks the addresses that rollout speaks to; a secret in one is not repeated."""
    for server in task.rollout.servers:
        if "@" in server or "?" in server or not re.match(r"https?://[^/]", server):
            raise SettingsError(
                f"{where}.rollout.servers: expected plain addresses such as http://10.0.0.7:8000/v1, without user "
                "name, password or query; the key comes from the variable that student.api_key_env names."
            )
    if not task.student.model.startswith("hosted_vllm/"):
        wrong = "rollout.servers" if task.rollout.servers else "trainer.share_gpu" if task.trainer.share_gpu else ""
        if wrong:
            raise SettingsError(
                f"{where}.{wrong} is about vLLM, but the student is {task.student.model!r}. Serve it as "
                "hosted_vllm/NAME, or remove the setting."
            )


def _check_secrets(model: Model, where: str) -> None:
    """Refuses secrets in a model's URL or options, without repeating them."""
    if "@" in model.api_base or "?" in model.api_base or "#" in model.api_base:
        raise SettingsError(
            f"{where}.api_base holds a user name, password or query. Secrets are never allowed in URLs: write the "
            "plain address, and name the variable that holds the key in api_key_env."
        )
    secret = next((key for key in _keys(model.extra) if _SECRET_KEY.search(key)), None)
    if secret is not None:
        raise SettingsError(
            f"{where}.extra.{secret} would be a secret in the settings. Put it into a variable and name that in "
            "api_key_env."
        )


def _keys(table: Mapping[str, Any]) -> Iterable[str]:
    for key, value in table.items():
        yield key
        if isinstance(value, Mapping):
            yield from _keys(value)
