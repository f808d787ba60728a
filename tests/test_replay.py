"""Replay: what another rubric would say of stored attempts; and the texts of rubrics, kept by version."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from ended_cases import ended, land
from stub_models import Reply, StubModels

from goldstream import cli
from schemas.case import Attempt, Case, Verdict, Violation
from schemas.errors import GoldError, SettingsError
from schemas.gold import SEAL, landing_folder, read_chain, read_outcomes
from schemas.outcomes import OUTCOME_SCHEMA
from schemas.record import case_record
from schemas.settings import Model, Rubric, Rule, Settings, Task
from schemas.settings.rubric_file import keep_rubric, kept_path, read_rubric, rubric_toml
from schemas.settings.verifiers import ExactCheck, JsonCheck, LengthCheck
from streams.gold import query
from streams.replay import Replay, replay, stored_attempts
from streams.rubrics import keep_rubrics, known_rubrics, rubric_text
from trainer.gate import task_judge
from trainer.holdout import holdout_cases

POLITE = Rule(id="polite", text="Be polite.", check=None)
OLD = Rubric(verifier="judges:verify", rules=(POLITE, Rule(id="true", text="Be true.")))
SHORT = Rule(id="short", text="At most three words.", check=LengthCheck(max_words=3))


def settings_for(tmp_path: Path, rubric: Rubric = OLD, **task: Any) -> Settings:
    toy = Task(topics=("logs",), rubric=rubric, **task)
    return Settings(state_dir=str(tmp_path / "state"), tasks={"toy": toy})


def attempt(text: str, *broken: str, round: int = 0, rubric: Rubric = OLD, **verdict: Any) -> Attempt:
    violations = tuple(Violation(rule, hinge=text[:2], why="so") for rule in broken)
    found = Verdict(
        passed=not broken, score=2.0 - len(broken), max_score=2, violations=violations, judge="verifier:judges:verify",
        rubric=rubric.version(), **verdict,
    )  # fmt: skip
    return Attempt(round=round, source="student", text=text, model="m", verdict=found)


def case(number: int, kind: Any, *attempts: Attempt) -> Case:
    made = msgspec.structs.replace(ended(number, kind), task="toy", attempts=attempts)
    assert made.outcome is not None
    return made.ended(kind, "judge", made.outcome.at_ms + number)


def fill(settings: Settings) -> None:
    """Lands four cases: two gold, of which one was corrected, one unresolved, one holdout."""
    land(
        settings.gold,
        [
            case(1, "gold", attempt("yes please")),
            case(2, "gold", attempt("no", "polite"), attempt("no thank you very much", round=1)),
            case(3, "unresolved", attempt("never ever", "polite")),
            case(4, "holdout", attempt("it is what it is", "true")),
            msgspec.structs.replace(ended(5), task="other"),
            msgspec.structs.replace(ended(6, "dead"), task="toy", attempts=()),
        ],
    )


def replayed(settings: Settings, rubric: Rubric, last: int = 100, which: Any = "last", **options: Any) -> Replay:
    return asyncio.run(replay(settings, "toy", rubric, stored_attempts(settings, "toy", last, which), **options))


def test_rows_that_would_flip_are_named_with_the_rules_that_did_it(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    fill(settings)
    before = sorted(path.stat().st_mtime_ns for path in settings.gold.rglob("*.parquet"))
    found = replayed(settings, Rubric(rules=(SHORT,)))
    assert (found.attempts, found.judged) == (4, 4)
    assert (found.still_passed, found.still_failed, found.passed_to_failed, found.failed_to_passed) == (1, 1, 1, 1)
    flips = {flip.case_id: (flip.outcome, flip.now, flip.rules_before, flip.rules_after) for flip in found.flips}
    assert flips == {
        "req-2": ("gold", "failed", (), ("short",)),
        "req-3": ("unresolved", "passed", ("polite",), ()),
    }
    changes = {change.rule: (change.before, change.after, change.change) for change in found.rules}
    assert changes == {"short": (0, 2, "new"), "polite": (1, None, "gone"), "true": (1, None, "gone")}
    assert found.rubric_before == {OLD.version(): 4}
    assert found.spend.calls == 0
    assert before == sorted(path.stat().st_mtime_ns for path in settings.gold.rglob("*.parquet"))


def test_the_record_of_a_row_is_that_of_its_case(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    told = {"production_answer": "no", "feedback": {"stars": 4}, "params": {"temperature": 0.5}}
    logged = msgspec.structs.replace(case(1, "holdout", attempt("yes please")), split="holdout", **told)
    land(settings.gold, [logged])
    (stored,) = stored_attempts(settings, "toy", 1, "last")
    (held_out,) = holdout_cases(settings.gold, "toy")
    assert stored.record == held_out.record == case_record(logged)
    assert {name: stored.record[name] for name in told} == told
    rubric = Rubric(rules=(Rule(id="as-logged", text="As logged.", check=ExactCheck(record="production_answer")),))
    assert replayed(settings, rubric).passed_to_failed == 1
    gate_judge = task_judge(settings_for(tmp_path, rubric), "toy")
    deciding = [asyncio.run(told_by) for told_by in (  # type: ignore[arg-type]
        gate_judge(held_out.messages, "no", held_out.record), gate_judge(held_out.messages, "no"),
    )]  # fmt: skip
    assert [verdict.passed for verdict in deciding] == [True, False]


def test_the_newest_cases_are_taken_and_of_each_the_attempts_asked_for(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    fill(settings)
    assert [one.case_id for one in stored_attempts(settings, "toy", 2, "last")] == ["req-4", "req-3"]
    texts = {which: [s.text for s in stored_attempts(settings, "toy", 3, which) if s.case_id == "req-2"]
             for which in ("last", "first", "all")}  # fmt: skip
    assert texts == {
        "last": ["no thank you very much"],
        "first": ["no"],
        "all": ["no", "no thank you very much"],
    }
    with pytest.raises(GoldError, match="no judged attempt of task nobody"):
        stored_attempts(settings, "nobody", 10, "last")


def test_without_models_what_one_had_found_stands_where_the_rule_still_exists(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    fill(settings)
    critical = msgspec.structs.replace(POLITE, severity="critical")
    found = replayed(settings, Rubric(rules=(critical, SHORT), pass_mark=1.0), programs_only=True)
    assert {flip.case_id for flip in found.flips} == {"req-4"}, "only `true` is gone; one of two points is enough"
    assert found.still_failed == 1, "polite is critical now"
    assert {change.rule: change.change for change in found.rules}["polite"] == "changed"


def test_a_model_is_called_for_its_rules_and_no_more_often_than_allowed(tmp_path: Path, models: StubModels) -> None:
    models.answer = lambda request: Reply('{"violations": []}')
    settings = settings_for(tmp_path, judge=Model(model="hosted_vllm/judge", api_base=models.api_base))
    fill(settings)
    found = replayed(settings, Rubric(rules=(POLITE, SHORT)), at_once=1, max_calls=3)
    assert found.spend.calls == len(models.requests) == 2, "a third could be read wrong and need a fourth"
    assert (found.judged, found.unjudged) == (2, {"not judged: --max-calls is reached": 2})
    assert '"enum": ["polite"]' in json.dumps(models.requests[0]["response_format"])


def test_the_command_tells_programs_and_people(tmp_path: Path) -> None:
    config = tmp_path / "goldstream.toml"
    models = "".join(f'{role}.model = "openai/x"\n' for role in ("student", "refiner", "strategist", "judge"))
    config.write_text(
        f'state_dir = "{tmp_path / "state"}"\n[tasks.toy]\ntopics = ["logs"]\nrubric = "now.toml"\n{models}'
    )
    (tmp_path / "now.toml").write_text(rubric_toml(Rubric(rules=(POLITE,))))
    (tmp_path / "new.toml").write_text(rubric_toml(Rubric(rules=(SHORT,))))
    fill(settings_for(tmp_path))
    arguments = ["replay", "--config", str(config), "--rubric", str(tmp_path / "new.toml")]
    told = CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False)
    assert json.loads(told.stdout)["passed_to_failed"] == 1
    shown = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert "2 of 4 would flip (50.0%)" in shown.stdout
    settings_file = CliRunner().invoke(cli, [*arguments[:-1], str(config)])
    assert isinstance(settings_file.exception, SettingsError)
    assert "expected a rubric alone" in str(settings_file.exception)
    listed = CliRunner().invoke(cli, ["judge", "rubrics", "--json", "--config", str(config)], catch_exceptions=False)
    assert {row["rubric"] for row in json.loads(listed.stdout)} == {OLD.version(), Rubric(rules=(POLITE,)).version()}


# Texts by version


EVERYTHING = Rubric(
    rules=(
        Rule(id="a", text='Say "a"\n\\ \x7f \U0001f600', good=("x",), bad=("y",), points=2.5),
        Rule(id="b", text="JSON.", check=JsonCheck(schema={"properties": {"a b": {"enum": [None, 1.5, True]}}})),
        SHORT,
    ),
    pass_mark=3.0,
    ask_model="unless_failed",
    guidance="Be\nfair.",
)


def test_a_rubric_written_as_toml_is_read_as_the_same_version(tmp_path: Path) -> None:
    path = keep_rubric(tmp_path, EVERYTHING)
    assert path == kept_path(tmp_path, EVERYTHING.version())
    assert read_rubric(path) == EVERYTHING
    assert read_rubric(path).version() == EVERYTHING.version()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_version_changes_with_what_is_judged_and_not_with_what_is_left_at_its_default() -> None:
    versions = {rubric.version() for rubric in (
        OLD, EVERYTHING, Rubric(rules=(SHORT,)), Rubric(rules=(msgspec.structs.replace(SHORT, bad=("z",)),)),
        Rubric(rules=(msgspec.structs.replace(SHORT, check=LengthCheck(max_words=4)),)),
    )}  # fmt: skip
    assert len(versions) == 5
    assert Rubric(rules=(SHORT,), critical_fails=True, pass_mark=None).version() in versions


def test_the_text_of_what_rows_were_judged_by_can_be_looked_up(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    keep_rubrics(settings)
    fill(settings)
    changed = settings_for(tmp_path, Rubric(rules=(SHORT,)))
    rows = {row["rubric"]: row for row in known_rubrics(changed)}
    old, new = rows[OLD.version()], rows[Rubric(rules=(SHORT,)).version()]
    assert (old["attempts"], old["passed"], old["in_use"], old["text_kept"]) == (5, 2, False, True)
    assert (new["attempts"], new["in_use"], new["text_kept"]) == (0, True, False)
    assert 'id = "polite"' in rubric_text(changed, OLD.version())
    with pytest.raises(SettingsError, match=r"not in .*rubrics"):
        rubric_text(changed, "0" * 12)
    with pytest.raises(SettingsError, match="no rubric version"):
        rubric_text(changed, "../../secrets")


# What rows tell of votes


def test_a_row_tells_how_far_the_votes_agreed_and_older_files_are_still_read(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    land(settings.gold, [case(1, "gold", attempt("yes"))])
    (older,) = read_chain(settings.gold, 0)
    forget_votes(older.path)
    land(settings.gold, [case(2, "gold", attempt("yes", votes=3, agreement=2 / 3, misquoted=1))])
    _, rows = query(
        settings.gold, "SELECT case_id, votes, round(agreement, 2), misquoted FROM attempts ORDER BY case_id"
    )
    assert rows == [("req-1", None, None, None), ("req-2", 3, 0.67, 1)]
    read = read_outcomes(settings.gold, ("case_id", "attempts")).to_pylist()
    assert [row["attempts"][0]["votes"] for row in read] == [None, 3]


def forget_votes(path: Path) -> None:
    """Writes a landing file anew as it was before attempts told of votes."""
    table = pq.ParquetFile(path).read()
    rows = table.to_pylist()
    gone = ("votes", "agreement", "misquoted")
    old = pa.struct([field for field in OUTCOME_SCHEMA.field("attempts").type.value_type if field.name not in gone])
    schema = pa.schema(
        [pa.field("attempts", pa.list_(old)) if field.name == "attempts" else field for field in table.schema],
        {key: held for key, held in table.schema.metadata.items() if key != SEAL},
    )
    for row in rows:
        row["attempts"] = [{k: v for k, v in one.items() if k not in gone} for one in row["attempts"]]
    path.unlink()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    assert landing_folder(path.parents[2], 0) == path.parent
