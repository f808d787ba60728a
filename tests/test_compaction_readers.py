"""Compaction changes nothing for whoever reads: points in time, statistics, series, commands, the trainer's data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ended_cases import ended, land
from scraped import series

from goldstream import cli
from schemas.gold import Watermark, current_watermark, read_outcomes
from schemas.metrics_server import scrape
from schemas.settings import Model, Rubric, Rule, Settings, Task, Trainer
from schemas.settings.gold import Gold
from streams.compaction.compact import compact
from streams.exporter import families as f
from streams.exporter.gold import show_gold
from streams.gold import query, stats
from streams.watermarks import to_json
from trainer.dataset import build_examples, train_rows

POINT = "SELECT outcome, epoch, count(*), sum(cost_usd), max(kafka_offset) FROM outcomes GROUP BY ALL ORDER BY ALL"
GOLD_FAMILIES = (f.CASES, f.GOLD, f.GOLD_STRATEGY, f.JUDGED, f.ACCEPTED, f.VIOLATIONS, f.CASE_CALLS, f.CASE_COST)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    task = Task(topics=("log",), rubric=Rubric(rules=(Rule(id="kind", text="Be kind."),)), judge=Model(model="m"))
    return Settings(state_dir=str(tmp_path / "state"), tasks={"scribe": task})


def filled(gold: Path) -> list[Watermark]:
    """Lands twelve files of two partitions, in which later rows supersede earlier ones; returns each point in time."""
    points: list[Watermark] = [{}]
    for number in range(12):
        kinds: Any = ("gold", "unresolved", "dead", "holdout")
        cases = [ended(4 * number + place, kind, split="holdout" if kind == "holdout" else "train")
                 for place, kind in enumerate(kinds)]  # fmt: skip
        if number >= 2:  # what was dead two files before, in this partition
            cases.append(ended(4 * (number - 2) + 2, "gold", epoch=1))
        land(gold, cases, partition=number % 2)
        points.append(current_watermark(gold))
    return points


def compacted(gold: Path) -> None:
    """Compacts in two steps, and removes everything superseded."""
    compact(gold, Gold(grace_s=0.0))
    land(gold, [ended(900)])
    compact(gold, Gold(grace_s=0.0, merge_files=2))
    compact(gold, Gold(grace_s=0.0))
    assert not list(gold.glob("landing/p=0*/*.parquet"))


def test_every_point_in_time_is_the_same_after_the_landing_files_of_that_time_have_gone(settings: Settings) -> None:
    gold, points = settings.gold, filled(settings.gold)[::3]

    def seen(point: Watermark) -> Any:
        rows = read_outcomes(gold, ["case_id", "epoch", "outcome", "prompt"], watermark=point).to_pylist()
        return query(gold, POINT, point), stats(gold, point), rows

    before = [seen(point) for point in points]
    compacted(gold)
    assert [seen(point) for point in points] == before
    assert len({str(one) for one in before}) == len(points)  # each is another


def test_commands_answer_alike_at_a_point_whose_landing_files_have_gone(settings: Settings, tmp_path: Path) -> None:
    point = filled(settings.gold)[5]
    (tmp_path / "then.json").write_text(to_json(point))

    def said(*command: str) -> str:
        options = ["--as-of", str(tmp_path / "then.json"), "--set", f"state_dir={settings.state}"]
        result = CliRunner().invoke(cli, ["gold", *command, *options])
        assert result.exit_code == 0, result.output
        return result.output

    commands = (
        ["stats", "--json"],
        ["show", "req-2", "--json"],
        ["why", "req-2"],
        ["sql", "FROM rgt_pairs ORDER BY ALL", "--json"],
    )
    before = [said(*command) for command in commands]
    compacted(settings.gold)
    assert [said(*command) for command in commands] == before


def test_statistics_and_series_of_the_gold_set_are_those_of_before(settings: Settings) -> None:
    filled(settings.gold)
    land(settings.gold, [ended(900)])

    def shown() -> Any:
        show_gold(settings)
        return stats(settings.gold), series(scrape(GOLD_FAMILIES))

    before = shown()
    compact(settings.gold, Gold(grace_s=0.0))
    compact(settings.gold, Gold(grace_s=0.0))
    assert shown() == before
    assert len(before[1]) > 10


def test_a_run_pinned_before_compaction_trains_on_the_same_examples_after(settings: Settings, tokenizer: Any) -> None:
    points = filled(settings.gold)

    def trained(point: Watermark) -> tuple[str, list[str]]:
        rows = train_rows(settings.gold, "scribe", point, "rgt")
        data = build_examples(rows, tokenizer, recipe="rgt", strategy_weight=Trainer().strategy_weight, max_length=512)
        return data.sha256(), [f"{one.case_id} {one.branch}" for one in data.examples]

    before = [trained(point) for point in points[1::4]]
    compacted(settings.gold)
    assert [trained(point) for point in points[1::4]] == before
    assert len({digest for digest, _ in before}) == len(before)
