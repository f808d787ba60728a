"""What makes an answer acceptable: rules, points or a scale, the pass mark; and how many judges say so."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from schemas.case import Severity
from schemas.settings.models import Model
from schemas.settings.section import Positive, Section
from schemas.settings.verifiers import Check, PythonCheck


class Rule(Section, frozen=True):
    """One rule of a rubric; an answer without a violation of it earns its points.

    With a `check` a program decides it, else the rubric's verifier or a model.
    """

    id: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    text: str
    severity: Severity = "major"
    points: Annotated[float, Meta(gt=0)] = 1.0
    good: tuple[str, ...] = ()  # examples that obey it, shown to the models
    bad: tuple[str, ...] = ()  # examples that break it
    check: Check | None = None


class Scale(Section, frozen=True):
    """Grades a model judge gives, from `lowest` to `highest`."""

    highest: float
    lowest: float = 0.0
    levels: dict[str, str] = {}  # what some grades mean, such as "5" = "Nothing to add."


class Rubric(Section, frozen=True, dict=True):
    """What makes an answer acceptable.

    Without a scale the score is the points of the rules that are not broken.
    """

    verifier: str = ""  # "package.module:function" of (messages, answer) -> list of Violation
    rules: tuple[Rule, ...] = ()
    scale: Scale | None = None
    pass_mark: float | None = None  # default: every point; a scale has no default
    critical_fails: bool = True  # an answer that breaks a critical rule fails, whatever its score
    ask_model: Literal["always", "unless_failed"] = "always"  # the latter: not where checks have failed the answer
    guidance: str = ""  # free text for a model judge

    @cached_property
    def points(self) -> float:
        """The points of all rules together."""
        return sum(rule.points for rule in self.rules)

    @property
    def max_score(self) -> float:
        """The best score: the scale's, or that of an answer that breaks no rule."""
        return self.points if self.scale is None else self.scale.highest

    @property
    def mark(self) -> float:
        """The lowest score that passes."""
        return self.max_score if self.pass_mark is None else self.pass_mark

    @cached_property
    def model_rules(self) -> tuple[Rule, ...]:
        """The rules that only a model can decide."""
        return () if self.verifier else tuple(rule for rule in self.rules if rule.check is None)

    @cached_property
    def of_models(self) -> Rubric:
        """This rubric with the rules alone that only a model can decide."""
        return msgspec.structs.replace(self, rules=self.model_rules)

    @cached_property
    def text(self) -> str:
        """The rules with their examples, and the guidance, as prompts have them."""
        lines: list[str] = []
        for rule in self.rules:
            lines.append(f"- {rule.id} ({rule.severity}): {rule.text}")
            for examples, told in ((rule.good, "obeys it"), (rule.bad, "breaks it")):
                lines += [f"  {told}: {msgspec.json.encode(example).decode()}" for example in examples]
        return "\n".join([*lines, *(["", self.guidance] if self.guidance else [])])

    @property
    def needs_model(self) -> bool:
        """Whether a model has a say. Where programs decide every rule none has, and a scale's grade is theirs too."""
        return bool(self.model_rules)

    @property
    def programs(self) -> tuple[str, ...]:
        """The Python functions that decide rules."""
        functions = (rule.check.function for rule in self.rules if isinstance(rule.check, PythonCheck))
        return tuple(dict.fromkeys(name for name in (self.verifier, *functions) if name))

    def version(self) -> str:
        """Returns a short hash that changes whenever the rubric does; settings left at their default are not in it."""
        return self._version

    @cached_property
    def _version(self) -> str:  # every verdict asks, and finding out what is at its default takes long
        rubric = msgspec.json.decode(msgspec.json.encode(self), type=Rubric)
        return hashlib.sha256(msgspec.json.encode(without_defaults(rubric), order="sorted")).hexdigest()[:12]


class Panel(Section, frozen=True):
    """How many opinions a verdict takes, and what decides where they differ.

    majority: more than half must pass, an even split fails. unanimous: all must pass. strictest: the vote with the
    lowest score stands as it is. escalate: where votes differ, `tie_break` decides alone.
    """

    votes: Positive = 1  # of each judge
    judges: tuple[Model, ...] = ()  # besides the task's judge
    decide: Literal["majority", "unanimous", "strictest", "escalate"] = "majority"
    tie_break: Model = Model()


def without_defaults(section: Section) -> dict[str, Any]:
    """Returns a section as plain data, without what is left at its default."""
    plain: dict[str, Any] = {}
    for field in msgspec.structs.fields(section):
        value = getattr(section, field.name)
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        if value != default:
            plain[field.name] = _plain(value)
    config = type(section).__struct_config__
    return plain if config.tag is None else {str(config.tag_field): config.tag, **plain}


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return without_defaults(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
