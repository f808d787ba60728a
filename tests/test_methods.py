"""Claims about the methods benchmark: every row runs and resumes, its formulas and statistics have known answers.

The real student and the real judge on a handful of prompts; the teacher is the student with one empty layer more.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from transformers import AutoTokenizer

from schemas.errors import SettingsError, TrainingError
from trainer.methods import factory, supervised, table
from trainer.methods.benchmark import Plan, Report, best_trial, restore_runs, run_benchmark
from trainer.methods.curves import crossing, fit_log, mean_interval, prompts_needed, relative
from trainer.methods.factory import Produced, Stream, produce
from trainer.methods.learner import Learner, Row, load_model, trained_logprobs
from trainer.methods.onpolicy import distillation_advantages, group_advantages, grpo_loss, reinforce_loss
from trainer.methods.plot import plot
from trainer.methods.report import markdown
from trainer.methods.runs import RunSpec, run_once
from trainer.methods.table import METHODS, Tuned, chosen
from trainer.methods.teacher import grow
from trainer.methods.world import STUDENT, World

PROMPTS = 4


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Iterator[None]:
    """Data made four prompts at a time: the benchmark's own hundred would take a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factory, "BLOCK", PROMPTS)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark's folder with its models already there."""
    torch.set_num_threads(1)
    made: Path = tmp_path_factory.mktemp("methods")
    teacher = made / "models" / "teacher"
    grow(load_model(STUDENT), 1).save_pretrained(teacher)
    AutoTokenizer.from_pretrained(STUDENT).save_pretrained(teacher)
    shutil.copytree(STUDENT, made / "models" / "hard")
    return made


@pytest.fixture(scope="module")
def data(folder: Path) -> list[Produced]:
    return produce(folder, World(), Stream(), PROMPTS)


def a_spec(method: str, **settings: object) -> RunSpec:
    plain = {"size": PROMPTS, "seed": "0", "learning_rate": 1e-3, "epochs": 1, "rank": 4, "batch": 4}
    return msgspec.convert(plain | {"method": method, "holdout": 4, "unseen": 2} | settings, RunSpec)


# Runs


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_counts_what_it_used(folder: Path, method: str) -> None:
    result = run_once(folder, a_spec(method), World())
    assert 0 <= result.seen.passed <= result.seen.score <= 1
    assert (result.steps > 0) == (result.trained_tokens > 0) == (not result.note)
    silent = METHODS[method].objective == "distillation" or METHODS[method].data == "teacher"
    assert (result.judge_calls == 0) == silent
    assert result.generated_tokens >= PROMPTS


def test_a_finished_run_is_read_and_not_repeated(folder: Path) -> None:
    first = run_once(folder, a_spec("isft"), World(), "one revision")
    assert run_once(folder, a_spec("isft"), World(), "another") == first


def test_another_setting_is_another_run_and_the_same_setting_comes_out_the_same(folder: Path, tmp_path: Path) -> None:
    other = a_spec("isft", learning_rate=2e-3)
    assert other.key() != a_spec("isft").key()
    shutil.copytree(folder / "models", tmp_path / "models")
    again = run_once(tmp_path, a_spec("isft"), World())
    first = run_once(folder, a_spec("isft"), World())
    assert (again.seen, again.last, again.trained_tokens) == (first.seen, first.last, first.trained_tokens)


def test_a_run_without_anything_to_train_on_reports_the_base_itself(folder: Path) -> None:
    few = run_once(folder, a_spec("rejection", size=1, seed="7"), World())
    assert few.steps == 0
    assert "nothing to train on" in few.note


def test_a_loss_that_is_no_number_ends_the_run(folder: Path) -> None:
    learner = Learner(STUDENT, rank=4, alpha=8, learning_rate=1e-3, seed=0)
    learner.begin()
    with pytest.raises(TrainingError, match="learning rate"):
        learner.finish(math.nan)


def test_a_run_that_fails_is_told_and_the_rest_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "models", tmp_path / "models")
    monkeypatch.setitem(table.TUNED, "rejection", Tuned(1e30, 3))
    monkeypatch.setattr(supervised, "first_pass", lambda one: "Diagnoses: none")
    plan = Plan(chosen(["rejection", "isft"]), sizes=(2,), seeds=1, holdout=2, unseen=2)
    report = run_benchmark(tmp_path, plan, jobs=1, say=lambda line: None)
    assert [run.spec.method for run in report.runs] == ["isft"]
    assert len(report.failures) == 1
    assert "the loss became nan" in report.failures[0]
    assert "Runs that failed" in markdown(report)


def test_a_whole_benchmark_gives_tables_figures_and_a_picture(folder: Path, tmp_path: Path) -> None:
    rows = chosen(["isft", "rgt", "rgt-b"])
    said: list[str] = []
    plan = Plan(rows, sizes=(1, 2, 4), seeds=2, holdout=4, unseen=2)
    with pytest.raises(SettingsError, match="no finished run"):
        run_benchmark(folder, plan, jobs=1, say=said.append, report_only=True)
    report = run_benchmark(folder, plan, jobs=1, say=said.append)
    assert len(report.runs) == len(said) == 3 * 2 * len(rows)
    again = run_benchmark(folder, plan, jobs=1, say=said.append, report_only=True)
    assert (again.curves, again.runs) == (report.curves, report.runs)
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report
    assert [point["seeds"] for point in report.curves["rgt"]] == [2, 2, 2]
    assert set(report.fits) == {"isft", "rgt"}  # no control
    assert report.relative["score +25 %, fitted"].get("rgt") in (1.0, None)  # None: four prompts never get there
    text = markdown(report)
    assert all(METHODS[row.name].title in text for row in rows)
    plot(report, tmp_path / "methods.png")
    assert (tmp_path / "methods.png").read_bytes().startswith(b"\x89PNG")


def test_finished_runs_are_taken_from_an_earlier_report(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "models", tmp_path / "new" / "models")
    plan = Plan(chosen(["isft"]), sizes=(2,), seeds=1, holdout=2, unseen=2)
    report = run_benchmark(folder, plan, jobs=1, say=lambda line: None)
    old = msgspec.structs.replace(report.runs[0], spec=msgspec.structs.replace(report.runs[0].spec, protocol=0))
    (tmp_path / "report.json").write_bytes(
        msgspec.json.encode(msgspec.structs.replace(report, runs=[*report.runs, old]))
    )
    assert restore_runs(tmp_path / "new", tmp_path / "report.json") == 1  # not the one of another protocol
    assert restore_runs(tmp_path / "new", tmp_path / "report.json") == 0
    again = run_benchmark(tmp_path / "new", plan, jobs=1, say=lambda line: None, report_only=True)
    assert again.runs == report.runs
    (tmp_path / "report.json").write_text('{"task": 1}')
    with pytest.raises(SettingsError, match="no report"):
        restore_runs(tmp_path, tmp_path / "report.json")


def test_the_sft_family_runs_first_and_on_policy_rows_have_fewer_seeds() -> None:
    specs = Plan(chosen([]), sizes=(50, 1000), seeds=5).specs()
    families = [METHODS[spec.method].family for spec in specs]
    assert families[: 4 * 3] == ["sft"] * 4 * 3
    assert families.count("sft") == 4 * 2 * 5
    assert {spec.seed for spec in specs if spec.method == "grpo"} == {"0", "1", "2"}
    assert len({spec.key() for spec in specs}) == len(specs)


def test_tuning_keeps_the_cheaper_of_trials_that_one_run_cannot_tell_apart() -> None:
    tried = [(0.980, Tuned(1e-3, 3)), (0.960, Tuned(3e-3, 3)), (0.984, Tuned(1e-3, 6))]
    assert best_trial(tried) == Tuned(1e-3, 3)
    assert best_trial([*tried, (0.99, Tuned(3e-3, 6))]) == Tuned(3e-3, 6)


def test_names_that_do_not_exist_are_refused_with_those_that_do() -> None:
    with pytest.raises(SettingsError, match="rejection"):
        chosen(["isft", "ppo"])
    with pytest.raises(SettingsError, match="goldstream ablate --task support"):
        World("support")


# Data


def test_what_a_prompt_gives_does_not_depend_on_how_many_are_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factory, "BLOCK", 2)
    shutil.copytree(folder / "models", tmp_path / "models")
    short = _learnt(produce(tmp_path, World(), Stream(seed="5"), 2))
    shutil.rmtree(tmp_path / "data")
    assert _learnt(produce(tmp_path, World(), Stream(seed="5"), 3))[:2] == short


def _learnt(data: list[Produced]) -> list[object]:
    return [
        ([a.text for a in one.case.attempts], [a.text for a in one.draws], one.teacher, one.case.strategy)
        for one in data
    ]


def test_no_training_prompt_is_a_holdout_prompt() -> None:
    world = World()
    asked = {prompt.messages for prompt in world.prompts("holdout", 200)}
    assert asked.isdisjoint(prompt.messages for prompt in world.prompts("train:0", 1000))


def test_a_judge_that_is_always_wrong_says_the_opposite(folder: Path, data: list[Produced]) -> None:
    wrong = produce(folder, World(), Stream(noise=1.0), PROMPTS)
    told = [one.case.attempts[0].verdict for one in data]
    heard = [one.case.attempts[0].verdict for one in wrong]
    assert [v.passed for v in told if v] == [not v.passed for v in heard if v]
    assert [one.case.attempts[0].text for one in wrong] == [one.case.attempts[0].text for one in data]


def test_each_row_trains_on_its_own_part_of_the_same_data(data: list[Produced]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    built = {name: supervised.build(METHODS[name], data, tokenizer, 0) for name in METHODS}
    assert {e.branch for e in built["isft"]} == {"A"}
    assert {e.branch for e in built["rgt-b"]} == {"B"}
    corrected = sum(one.case.strategy is not None for one in data)
    assert len(built["rgt"]) == len(built["isft"]) + corrected
    assert len(built["sft-q"]) == len(data)
    assert [e for e in built["rgt-shuffled"] if e.branch == "A"] == [e for e in built["rgt"] if e.branch == "A"]
    thoughts = [sorted(_thought(e.input_ids, e.weights) for e in built[n] if e.branch == "B") for n in _SHUFFLED]
    assert thoughts[0] == thoughts[1]
    steps = {n: supervised.steps_of(METHODS[n], data, built[n], 2, 1) for n in ("isft", "rgt", "isft-steps")}
    assert steps == {"isft": 2 * len(data), "rgt": 2 * len(data), "isft-steps": 2 * len(built["rgt"])}


_SHUFFLED = ("rgt", "rgt-shuffled")


def _thought(ids: tuple[int, ...], weights: tuple[float, ...]) -> list[int]:
    return [token for token, weight in zip(ids, weights, strict=True) if 0 < weight < 1]


# The learner


def test_a_grown_model_answers_as_the_one_it_grew_from() -> None:
    base = load_model(STUDENT)
    rows = [Row([5, 9, 30, 12], [0.0, 1.0, 1.0, 1.0])]
    grown = trained_logprobs(grow(base, 2), rows, {})
    torch.testing.assert_close(grown.logprobs_N, trained_logprobs(base, rows, {}).logprobs_N)


def test_the_sampler_draws_from_what_was_trained() -> None:
    learner = Learner(STUDENT, rank=4, alpha=8, learning_rate=3e-3, seed=0)
    prompts = [learner.tokenizer(text)["input_ids"] for text in ("Reports cough.", "Takes insulin 10 units daily. On")]
    for _ in range(5):
        _step_towards(learner, Row([*prompts[0], 40, 41, 42], [0.0] * len(prompts[0]) + [1.0] * 3))
    drawn = learner.sample(prompts, temperature=0.0, max_tokens=6, seed=0)
    plain = Learner(STUDENT, rank=4, alpha=8, learning_rate=3e-3, seed=0)
    assert drawn != plain.sample(prompts, temperature=0.0, max_tokens=6, seed=0)
    learner.begin()
    found = learner.trained([one.row() for one in drawn])
    worse = learner.trained([one._replace(tokens=[*one.tokens[:-1], 77]).row() for one in drawn])
    ends = [len(drawn[0].tokens) - 1, len(found.logprobs_N) - 1]
    assert all(found.logprobs_N[end] > worse.logprobs_N[end] for end in ends)


def test_lora_is_that_of_peft() -> None:
    from peft import LoraConfig, get_peft_model

    learner = Learner(STUDENT, rank=4, alpha=8, learning_rate=3e-3, seed=0)
    row = Row([5, 9, 30, 12, 44], [0.0, 1.0, 1.0, 1.0, 1.0])
    _step_towards(learner, row)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load_model(STUDENT), lora)
    own = {name: p for name, p in model.named_parameters() if "lora_" in name}
    assert len(own) == 2 * len(learner.lora())
    with torch.no_grad():
        for name, (down, up) in learner.lora().items():
            stem = f"base_model.model.model.{name.removesuffix('.weight')}"
            own[f"{stem}.lora_A.default.weight"].copy_(down)
            own[f"{stem}.lora_B.default.weight"].copy_(up)
        logits = model(input_ids=torch.tensor([row.ids[:-1]])).logits[0].log_softmax(-1)
        expected = logits.gather(-1, torch.tensor(row.ids[1:])[:, None])[:, 0]
    learner.begin()
    torch.testing.assert_close(learner.trained([row]).logprobs_N.detach(), expected)


def _step_towards(learner: Learner, row: Row) -> None:
    learner.begin()
    loss = -learner.trained([row]).logprobs_N.mean()
    torch.autograd.backward(loss)
    learner.finish(loss.item())


# On-policy formulas


def test_group_advantages_are_standardised_within_each_group() -> None:
    rewards = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.5, 0.5, 0.5, 0.5])
    expected = torch.tensor([-1.0, 1.0, -1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(group_advantages(rewards, 4), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("advantage", [0.7, -0.7])
def test_reinforce_raises_what_beat_the_baseline_and_lowers_what_did_not(advantage: float) -> None:
    logits = torch.zeros(3, requires_grad=True)
    logprob_N = logits.log_softmax(0)[:1]
    torch.autograd.backward(reinforce_loss(logprob_N, torch.tensor([0]), torch.tensor([advantage]), 1))
    assert logits.grad is not None
    moved = (logits - 0.1 * logits.grad).log_softmax(0)[0]
    assert (moved > logprob_N[0]) == (advantage > 0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"), [(1.0, 1.0, True), (1.5, 1.0, False), (1.5, -1.0, True), (0.5, -1.0, False)]
)
def test_grpo_stops_pushing_once_the_ratio_left_the_clip(ratio: float, advantage: float, moves: bool) -> None:
    logprob_N = torch.tensor([-1.0], requires_grad=True)
    old_N = logprob_N.detach() - math.log(ratio)
    torch.autograd.backward(grpo_loss(logprob_N, old_N, torch.tensor([0]), torch.tensor([advantage]), 1))
    assert logprob_N.grad is not None
    assert bool(logprob_N.grad.abs() > 0) == moves


def test_distillation_descends_the_reverse_kl_to_the_teacher() -> None:
    logits = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64).log_softmax(0)
    student = logits.log_softmax(0)
    kl = (student.exp() * (student - teacher)).sum()
    (expected,) = torch.autograd.grad(kl, logits, retain_graph=True)
    loss = -(student.exp().detach() * distillation_advantages(student, teacher) * student).sum()  # over all tokens
    (found,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(found, expected)


# Statistics


def test_the_log_fit_finds_the_curve_it_was_given() -> None:
    fit = fit_log([(n, 0.2 + 0.1 * math.log(n)) for n in (50, 100, 200, 500, 1000)])
    assert fit == pytest.approx((0.2, 0.1, 1.0))
    with pytest.raises(ValueError, match="two sizes"):
        fit_log([(50, 0.1), (50, 0.2)])


def test_prompts_needed_are_those_of_the_fitted_curve() -> None:
    fit = fit_log([(10, 0.5), (1000, 0.9)])
    assert prompts_needed(fit, 0.7) == pytest.approx(100, rel=1e-3)
    assert prompts_needed(fit_log([(10, 0.5), (1000, 0.4)]), 0.7) == math.inf


def test_a_crossing_is_interpolated_between_the_two_points_around_it() -> None:
    curve = [(0.0, 0.6), (50.0, 0.7), (100.0, 0.9), (200.0, 0.85), (400.0, 0.95)]
    assert crossing(curve, 0.75) == pytest.approx(62.5)
    assert crossing(curve, 0.92) == pytest.approx(200 + 200 * 0.02 / 0.05)  # the dip at 200 does not count as a fall
    assert crossing(curve, 0.96) == math.inf
    assert crossing(curve, 0.5) == 0.0


def test_prompts_are_told_as_multiples_of_one_method() -> None:
    found = relative({"rgt": 50.0, "isft": 80.0, "sft": math.inf}, "rgt")
    assert found == {"rgt": 1.0, "isft": 1.6, "sft": math.inf}
    assert relative({"rgt": 1.0, "isft": 80.0}, "rgt") == {}  # the fitted curve is above the target everywhere


def test_an_interval_is_students() -> None:
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found.mean, found.half) == pytest.approx((2.0, 4.303 / math.sqrt(3)), rel=1e-4)
    assert mean_interval([0.5]).half == math.inf
    assert mean_interval([float(n % 2) for n in range(100)]).half == pytest.approx(1.96 * 0.05025, rel=1e-3)
