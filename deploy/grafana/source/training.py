"""Training: who serves, what the gate said, what the trainer does, and whether each adapter passes more."""

from __future__ import annotations

from dashboard import JOB, TASK, Dashboard
from panels import Query, above, bars, below, series, stat, states, table

T = 'job=~"$job",task=~"$task"'
JUDGED, ACCEPTED = "goldstream_attempts_judged", "goldstream_attempts_accepted"
FIRST = f'{T},round="0",source="student"'
TRAIN, HOLDOUT = f'{FIRST},split="train"', f'{FIRST},split="holdout"'
NO_YES = {"0": ("fine", "green"), "1": ("failing", "red")}


def pass_rate(of: str, by: str) -> str:
    """Returns the share of judged attempts that pass, all time."""
    return f"sum by ({by}) ({ACCEPTED}{{{of}}}) / sum by ({by}) ({JUDGED}{{{of}}})"


def training() -> Dashboard:
    """Returns the dashboard."""
    made = Dashboard(
        "goldstream-training",
        "Goldstream / Training",
        "Who serves, what the gate said of each version, what the trainer does, and whether adapters pass more.",
        [JOB, TASK],
    )
    running = f'goldstream_trainer_state{{{T},state!="idle"}}'
    made.row(
        "Now",
        stat(
            "Serving",
            "The adapter that serves, by task.",
            Query(f"max by (task, version) (goldstream_adapter_info{{{T}}})", "{{task}}: {{version}}"),
            names=True,
            size=(6, 4),
        ),
        stat(
            "Serves since",
            "How long the newest has served.",
            Query(f"time() - max(goldstream_adapter_since_timestamp_seconds{{{T}}})"),
            "s",
            size=(3, 4),
        ),
        stat(
            "Trainer",
            "Of the chosen tasks.",
            Query(f"max({running})"),
            values={"0": ("idle", "text"), "1": ("at work", "blue")},
            size=(3, 4),
        ),
        stat(
            "Towards the next run",
            "Corrected rows since the last run, of those that start one.",
            Query(f"max(goldstream_trainer_corrected_rows{{{T}}} / goldstream_trainer_corrected_rows_needed{{{T}}})"),
            "percentunit",
            (("blue", None), ("orange", 1.5)),
            size=(3, 4),
        ),
        stat(
            "Last run",
            "How long ago it began.",
            Query(f"time() - max(goldstream_trainer_last_run_timestamp_seconds{{{T}}})"),
            "s",
            size=(3, 4),
        ),
        stat(
            "Refused in a row",
            "Versions that the gate has refused since one passed.",
            Query(f"max(goldstream_gate_refused_in_a_row{{{T}}})"),
            steps=above(1, 3),
            size=(3, 4),
        ),
        stat(
            "Last run failed",
            "goldstream trainer status shows the error.",
            Query(f"max(goldstream_trainer_failed{{{T}}})"),
            values={"0": ("no", "green"), "1": ("yes", "red")},
            size=(3, 4),
        ),
    )
    made.row(
        "Adapters",
        bars(
            "Pass rate by adapter, train",
            "First attempts of the student, all time.",
            Query(pass_rate(TRAIN, "task, adapter"), "{{task}}: {{adapter}}"),
            unit="percentunit",
            steps=below(0.3, 0.6),
            highest=1,
            size=(8, 9),
        ),
        series(
            "Pass rate by adapter over the last hour",
            "First attempts, train. A canary share stays on the version before: two lines at once are comparable.",
            Query(
                f"clamp(sum by (task, adapter) (delta({ACCEPTED}{{{TRAIN}}}[1h])) / "
                f"(sum by (task, adapter) (delta({JUDGED}{{{TRAIN}}}[1h])) > 0), 0, 1)",
                "{{task}}: {{adapter}}",
            ),
            unit="percentunit",
            highest=1,
            size=(16, 9),
        ),
        series(
            "Pass rate on the holdout",
            "By adapter, all time: never trained on or refined.",
            Query(pass_rate(HOLDOUT, "task, adapter"), "{{task}}: {{adapter}}"),
            unit="percentunit",
            highest=1,
        ),
        series(
            "First attempts judged",
            "By adapter: how the traffic moves from one to the next.",
            Query(f"sum by (task, adapter) ({JUDGED}{{{FIRST}}})", "{{task}}: {{adapter}}"),
            stack=True,
        ),
        series(
            "Canary share",
            "Of cases left on the version before, until the new one is known to be as good.",
            Query(f"max by (task) (goldstream_adapter_canary_share{{{T}}})", "{{task}}"),
            unit="percentunit",
            highest=0.5,
        ),
        table(
            "Who serves",
            "And who served before, and takes over where an adapter is missing.",
            {"serving": f"max by (task, version, previous, fallback) (goldstream_adapter_info{{{T}}})"},
            {"task": "Task", "version": "Serves", "previous": "Before", "fallback": "Fallback"},
            size=(24, 5),
        ),
    )
    made.row(
        "Gate",
        table(
            "Versions",
            "The newest 20 of each task. goldstream adapters show N has the whole report.",
            {
                "decided": f"max by (task, version, decision) (goldstream_gate_decision{{{T}}})",
                "before": f'max by (task, version) (goldstream_gate_pass_rate{{{T},side="before"}})',
                "after": f'max by (task, version) (goldstream_gate_pass_rate{{{T},side="after"}})',
                "cases": f"max by (task, version) (goldstream_gate_cases{{{T}}})",
                "p": f"max by (task, version) (goldstream_gate_p_value{{{T}}})",
                "at": f"1000 * max by (task, version) (goldstream_gate_timestamp_seconds{{{T}}})",
            },
            {
                "task": "Task",
                "version": "Version",
                "decision": "Decision",
                "before": "Incumbent",
                "after": "Candidate",
                "cases": "Holdout cases",
                "p": "p value",
                "at": "When",
            },
            {"before": "percentunit", "after": "percentunit", "at": "dateTimeAsIso"},
            size=(16, 9),
        ),
        bars(
            "Candidates' pass rate",
            "On the gate's holdout, by version.",
            Query(f'max by (task, version) (goldstream_gate_pass_rate{{{T},side="after"}})', "{{version}}"),
            unit="percentunit",
            steps=below(0.3, 0.6),
            highest=1,
            size=(8, 9),
        ),
    )
    made.row(
        "Trainer",
        states(
            "What it does",
            "By task.",
            Query(
                f'max by (task) (goldstream_trainer_state{{{T},state="training"}}) + 2 * max by (task) '
                f'(goldstream_trainer_state{{{T},state="gating"}})',
                "{{task}}",
            ),
            values={"0": ("idle", "text"), "1": ("training", "blue"), "2": ("gating", "purple")},
            size=(12, 7),
        ),
        series(
            "Corrected rows",
            "That came since the last run, and those that start one.",
            Query(f"max by (task) (goldstream_trainer_corrected_rows{{{T}}})", "{{task}}"),
            Query(f"max by (task) (goldstream_trainer_corrected_rows_needed{{{T}}})", "{{task}} starts a run"),
            size=(12, 7),
        ),
        series(
            "Loss",
            "Of the last step of the run under way, or of the last run.",
            Query(f"max by (task) (goldstream_trainer_loss{{{T}}})", "{{task}}"),
            lowest=None,
            size=(8, 7),
        ),
        series(
            "Steps",
            "Of the run under way or the last, and how many it has.",
            Query(f"max by (task) (goldstream_trainer_step{{{T}}})", "{{task}}"),
            Query(f"max by (task) (goldstream_trainer_steps{{{T}}})", "{{task}} of"),
            size=(8, 7),
        ),
        series(
            "Runs that ended",
            "By how, since the trainer started.",
            Query(f"sum by (task, result) (goldstream_trainer_runs_total{{{T}}})", "{{task}}: {{result}}"),
            size=(8, 7),
        ),
    )
    made.row(
        "Rollout",
        series(
            "Steps of rollout",
            "What it did, by how it ended.",
            Query(
                f"sum by (step, result) (rate(goldstream_rollout_steps_total{{{T}}}[$__rate_interval]))",
                "{{step}}: {{result}}",
            ),
            unit="cps",
            size=(8, 7),
        ),
        states(
            "Steps that fail",
            "And switch pending: another version should serve than does.",
            Query(f"max by (step) (goldstream_rollout_failing{{{T}}})", "{{step}}"),
            Query(f"max(goldstream_rollout_pending{{{T}}})", "switch pending"),
            values=NO_YES,
            size=(8, 7),
        ),
        series(
            "vLLM servers",
            "By state; none for a student in process.",
            Query(f"sum by (state) (goldstream_rollout_servers{{{T}}})", "{{state}}"),
            stack=True,
            size=(8, 7),
        ),
    )
    return made
