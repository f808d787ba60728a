"""Every setting, typed and described, in one place: a file for each of those it belongs to.

Precedence: command-line flag (`--set a.b=c`), environment (GOLDSTREAM_A__B=c), goldstream.toml,
default. An unknown key is an error. Loaded once by a command and passed down.
"""

from schemas.settings.admission import NearDuplicates, PersonalKind, Redact
from schemas.settings.budget import Budget, Limits
from schemas.settings.dashboard import Dashboard
from schemas.settings.gold import Gold, Publish
from schemas.settings.load import load_settings
from schemas.settings.mapping import Mapping, SchemaRegistry
from schemas.settings.metrics import Metrics
from schemas.settings.models import CarryOver, LocalModel, Model
from schemas.settings.refining import Refiner, Refining, Review, Strategies
from schemas.settings.root import Settings, Task
from schemas.settings.rubric import Panel, Rubric, Rule, Scale
from schemas.settings.section import ROLES, TASK_NAME, Role
from schemas.settings.streams import Intake, Kafka, Sink, Worker
from schemas.settings.tracing import Tracing
from schemas.settings.training import Gate, Rollout, Trainer, Webhook

__all__ = [
    "ROLES", "TASK_NAME", "Budget", "CarryOver", "Dashboard", "Gate", "Gold", "Intake", "Kafka", "Limits",
    "LocalModel", "Mapping", "Metrics", "Model", "NearDuplicates", "Panel", "PersonalKind", "Publish", "Redact",
    "Refiner", "Refining", "Review", "Role", "Rollout", "Rubric", "Rule", "Scale", "SchemaRegistry", "Settings",
    "Sink", "Strategies",
    "Task", "Tracing", "Trainer", "Webhook", "Worker", "load_settings",
]  # fmt: skip
