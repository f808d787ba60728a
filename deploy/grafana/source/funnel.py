"""Factory funnel: what becomes of the product's records, round by round, and why the others fell out."""

from __future__ import annotations

from dashboard import JOB, TASK, Dashboard
from panels import Query, above, bars, below, series, stat

J = 'job=~"$job"'
T = f'{J},task=~"$task"'
JUDGED, ACCEPTED = "goldstream_attempts_judged", "goldstream_attempts_accepted"
TRAIN = f'{T},split="train"'
FIRST = f'{TRAIN},round="0"'


def rate_of_change(what: str, by: str, window: str = "15m") -> str:
    """Returns what a gauge of the gold set gained a minute: it falls where cases are redriven or reviewed."""
    return f"60 * sum by ({by}) (deriv({what}[{window}]))"


def funnel() -> Dashboard:
    """Returns the dashboard."""
    made = Dashboard(
        "goldstream-funnel",
        "Goldstream / Factory funnel",
        "What becomes of the product's records: judged, refined round by round, gold, and why others fell out.",
        [JOB, TASK],
    )
    gold = f"sum(goldstream_gold_rows{{{T}}})"
    made.row(
        "Now",
        stat("Gold rows", "In the gold set, all time.", Query(gold), decimals=0),
        stat(
            "Gold in this range",
            "Rows gained over the dashboard's time range.",
            Query(f"sum(delta(goldstream_gold_rows{{{T}}}[$__range]))", instant=True),
            decimals=0,
        ),
        stat(
            "Corrected",
            "Share of gold whose first attempt had failed: what training learns from.",
            Query(f'sum(goldstream_gold_rows{{{T},corrected="true"}}) / {gold}'),
            "percentunit",
        ),
        stat(
            "First attempts that pass",
            "Of train cases, all time: the student's own pass rate.",
            Query(f"sum({ACCEPTED}{{{FIRST}}}) / sum({JUDGED}{{{FIRST}}})"),
            "percentunit",
            below(0.3, 0.6),
        ),
        stat(
            "Dead letters",
            "Not redriven. goldstream dlq list",
            Query(f"sum(goldstream_dead_letters{{{T}}}) or vector(0)"),
            steps=above(1, 100),
        ),
        stat(
            "Newest gold row",
            "How long ago its case ended.",
            Query(f"time() - max(goldstream_gold_newest_timestamp_seconds{{{T}}})"),
            "s",
            above(3600, 86400),
        ),
    )
    made.row(
        "The funnel",
        bars(
            "From record to gold",
            "Cases that have ended, all time. Holdout is judged once, and never refined.",
            Query(f"sum(goldstream_cases{{{T}}})", "records ended"),
            Query(f"sum({JUDGED}{{{FIRST}}})", "judged, train"),
            Query(f"sum({ACCEPTED}{{{FIRST}}})", "passed at once"),
            Query(f'sum({JUDGED}{{{TRAIN},round="1"}})', "refined"),
            Query(f'sum({ACCEPTED}{{{TRAIN},round!="0"}})', "passed after refining"),
            Query(gold, "gold"),
            Query(f"sum(goldstream_gold_rows_with_strategy{{{T}}})", "gold with a strategy"),
            size=(12, 9),
        ),
        bars(
            "Where cases ended, and how",
            "By stage and outcome, all time.",
            Query(f"sum by (stage, outcome) (goldstream_cases{{{T}}})", "{{stage}}: {{outcome}}"),
            size=(12, 9),
        ),
        series(
            "Records read",
            "By what became of them, all tasks of the job: admitted, dropped, dead.",
            Query(f"sum by (result) (rate(goldstream_intake_records_total{{{J}}}[$__rate_interval]))", "{{result}}"),
            unit="cps",
            stack=True,
        ),
        series(
            "Records read, by log shape",
            "unknown: no shape fits, and they end as dead. goldstream map infer",
            Query(f"sum by (shape) (rate(goldstream_intake_records_total{{{J}}}[$__rate_interval]))", "{{shape}}"),
            unit="cps",
            stack=True,
        ),
        series(
            "Cases passed on",
            "By stage and the topic they went to, all tasks of the job.",
            Query(
                f"sum by (stage, to) (rate(goldstream_stage_produced_total{{{J}}}[$__rate_interval]))",
                "{{stage}} → {{to}}",
            ),
            unit="cps",
        ),
        series(
            "Cases ended a minute",
            "By outcome, over 15 minutes. Below 0: redriven, reviewed or erased.",
            Query(rate_of_change(f"goldstream_cases{{{T}}}", "outcome"), "{{outcome}}"),
            lowest=None,
            size=(12, 8),
        ),
        series(
            "Cases, all time",
            "By outcome.",
            Query(f"sum by (outcome) (goldstream_cases{{{T}}})", "{{outcome}}"),
            stack=True,
            size=(12, 8),
        ),
    )
    made.row(
        "Rounds and rules",
        bars(
            "Acceptance by round",
            "Share of judged attempts that pass, train, all time. Round 0 is the student's.",
            Query(f"sum by (round) ({ACCEPTED}{{{TRAIN}}}) / sum by (round) ({JUDGED}{{{TRAIN}}})", "round {{round}}"),
            unit="percentunit",
            highest=1,
        ),
        bars(
            "Acceptance by who made the attempt",
            "student, refiner, log (the production answer) and so on.",
            Query(f"sum by (source) ({ACCEPTED}{{{TRAIN}}}) / sum by (source) ({JUDGED}{{{TRAIN}}})", "{{source}}"),
            unit="percentunit",
            highest=1,
        ),
        series(
            "Acceptance over the last hour",
            "By round, train. Reviews and redriving move attempts of earlier hours too.",
            Query(
                f"clamp(sum by (round) (delta({ACCEPTED}{{{TRAIN}}}[1h])) / "
                f"(sum by (round) (delta({JUDGED}{{{TRAIN}}}[1h])) > 0), 0, 1)",
                "round {{round}}",
            ),
            unit="percentunit",
            highest=1,
        ),
        bars(
            "Violations by rule",
            "The 15 most frequent, all attempts, all time.",
            Query(f"topk(15, sum by (rule, severity) (goldstream_violations{{{T}}}))", "{{rule}} ({{severity}})"),
            size=(12, 8),
        ),
        series(
            "Violations a minute",
            "By rule, over 15 minutes: a rule that rises by itself is a change of traffic, or of the judge.",
            Query(rate_of_change(f"goldstream_violations{{{T}}}", "rule"), "{{rule}}"),
            lowest=None,
            size=(12, 8),
        ),
    )
    made.row(
        "What fell out, and experts",
        bars(
            "Dead letters",
            "By stage and reason. goldstream dlq list",
            Query(f"sum by (stage, reason) (goldstream_dead_letters{{{T}}})", "{{stage}}: {{reason}}"),
            steps=(("orange", None),),
            size=(6, 8),
        ),
        bars(
            "Unresolved",
            "By reason. goldstream review ask",
            Query(f"sum by (reason) (goldstream_unresolved{{{T}}})", "{{reason}}"),
            steps=(("orange", None),),
            size=(6, 8),
        ),
        bars(
            "Left out",
            "Dropped by intake, by reason: tiny records without text.",
            Query(f"sum by (reason) (goldstream_dropped{{{T}}})", "{{reason}}"),
            size=(6, 8),
        ),
        bars(
            "Experts' decisions",
            "Cases reviewed, by decision. goldstream review agreement compares them with the judge.",
            Query(f"sum by (decision) (goldstream_reviews{{{T}}})", "{{decision}}"),
            size=(6, 8),
        ),
    )
    made.row(
        "Sink and disk",
        series(
            "Rows written",
            "By outcome, all tasks of the job.",
            Query(f"sum by (outcome) (rate(goldstream_sink_rows_total{{{J}}}[$__rate_interval]))", "{{outcome}}"),
            Query(f"sum(rate(goldstream_sink_repeats_total{{{J}}}[$__rate_interval]))", "repeats left out"),
            unit="cps",
            size=(6, 8),
        ),
        series(
            "Bytes written",
            "Of landing files.",
            Query(f"sum(rate(goldstream_sink_bytes_total{{{J}}}[$__rate_interval]))", "bytes"),
            unit="Bps",
            size=(4, 8),
        ),
        series(
            "Files written",
            "Landing files, empty ones too: a range of repeats leaves one.",
            Query(f"sum(rate(goldstream_sink_files_total{{{J}}}[$__rate_interval]))", "files"),
            unit="cps",
            size=(4, 8),
        ),
        series(
            "Time in fsync",
            "Share of the sink's time. Near 1 the disk is the limit.",
            Query(f"sum(rate(goldstream_sink_fsync_seconds_total{{{J}}}[$__rate_interval]))", "fsync"),
            unit="percentunit",
            size=(4, 8),
        ),
        series(
            "Disk left",
            "Of the disk that holds the gold set. Alerts below a tenth.",
            Query(f"goldstream_gold_disk_free_bytes{{{J}}} / goldstream_gold_disk_size_bytes{{{J}}}", "disk left"),
            unit="percentunit",
            highest=1,
            size=(3, 8),
        ),
        stat(
            "Landing files",
            "Opened by every query until compaction.",
            Query(f"sum(goldstream_landing_files{{{J}}})"),
            steps=above(5000, 20000),
            size=(3, 8),
        ),
    )
    return made
