"""Cost: money, tokens and time of model calls, against budgets and against the gold they brought."""

from __future__ import annotations

from dashboard import JOB, TASK, Dashboard, variable
from panels import Query, above, bars, heat, series, stat, states

J = 'job=~"$job"'
T = f'{J},task=~"$task"'
R = f'{T},role=~"$role"'
COST, CALLS, TOKENS = "goldstream_model_cost_usd_total", "goldstream_model_calls_total", "goldstream_model_tokens_total"
SECONDS = "goldstream_model_call_seconds"
ROLE = variable("role", "Role", "student, judge, refiner, strategist.", f"{CALLS}{{{T}}}", "role")
USD = "currencyUSD"


def quantile(share: float) -> str:
    """Returns how long calls took at most, for a share of them, by role."""
    return f"histogram_quantile({share}, sum by (le, role) (rate({SECONDS}_bucket{{{R}}}[$__rate_interval])))"


def cost() -> Dashboard:
    """Returns the dashboard."""
    made = Dashboard(
        "goldstream-cost",
        "Goldstream / Cost",
        "Money, tokens and time of model calls, against budgets and the gold they brought. goldstream cost reconciles.",
        [JOB, TASK, ROLE],
    )
    gold = f"sum(goldstream_gold_rows{{{T}}})"
    made.row(
        "Now",
        stat(
            "Spent in this range",
            "By all workers and the trainer's judge, for every answer.",
            Query(f"sum(increase({COST}{{{R}}}[$__range]))", instant=True),
            USD,
            decimals=2,
        ),
        stat(
            "Per gold row",
            "What ended cases cost, all of them, divided by gold rows: all time.",
            Query(f"sum(goldstream_cases_cost_usd{{{R}}}) / {gold}"),
            USD,
            decimals=4,
        ),
        stat(
            "Pace",
            "US dollars a day at the pace of the last hour.",
            Query(f"86400 * sum(rate({COST}{{{R}}}[1h]))"),
            USD,
            decimals=2,
        ),
        stat(
            "Highest budget use",
            "The role nearest to its cap of today (UTC). Tasks without a cap count as 0.",
            Query(
                f"max(max by (task, role) (goldstream_budget_spent_usd{{{T}}}) / max by (task, role) "
                f"(goldstream_budget_cap_usd{{{T}}} > 0)) or vector(0)"
            ),
            "percentunit",
            above(0.75, 0.9),
        ),
        stat(
            "Calls that fail",
            "Of the last 10 minutes.",
            Query(f'(sum(rate({CALLS}{{{R},result!="ok"}}[10m])) or vector(0)) / sum(rate({CALLS}{{{R}}}[10m]))'),
            "percentunit",
            above(0.05, 0.2),
        ),
        stat(
            "Endpoints held",
            "By their circuit breaker: down, refusing us or limiting us.",
            Query(f"sum(max by (role, model) (goldstream_model_endpoints_held{{{J}}}))"),
            steps=above(1, 2),
        ),
    )
    made.row(
        "Money",
        series(
            "US dollars an hour, by role",
            "Of every answer, empty ones too.",
            Query(f"3600 * sum by (role) (rate({COST}{{{R}}}[$__rate_interval]))", "{{role}}"),
            unit=USD,
            stack=True,
            size=(12, 8),
        ),
        series(
            "US dollars an hour, by model",
            "A fallback that serves shows as its own model.",
            Query(f"3600 * sum by (model) (rate({COST}{{{R}}}[$__rate_interval]))", "{{model}}"),
            unit=USD,
            stack=True,
            size=(12, 8),
        ),
        bars(
            "Ended cases, by role and model",
            "What the rows of ended cases took, all time.",
            Query(f"sum by (role, model) (goldstream_cases_cost_usd{{{R}}})", "{{role}}: {{model}}"),
            unit=USD,
        ),
        series(
            "Cost per gold row",
            "By task, over what has ended so far.",
            Query(
                f"sum by (task) (goldstream_cases_cost_usd{{{R}}}) / sum by (task) (goldstream_gold_rows{{{T}}})",
                "{{task}}",
            ),
            unit=USD,
        ),
        bars(
            "Calls per gold row",
            "By role: refining rounds and votes multiply them.",
            Query(f"sum by (role) (goldstream_cases_model_calls{{{R}}}) / scalar({gold})", "{{role}}"),
        ),
    )
    made.row(
        "Budgets",
        bars(
            "Used today",
            "Share of the cap in money, by task and role; all: the task's own cap. 1: cases wait until 00:00 UTC.",
            Query(
                f"max by (task, role) (goldstream_budget_spent_usd{{{T}}}) / max by (task, role) "
                f"(goldstream_budget_cap_usd{{{T}}} > 0)",
                "{{task}}: {{role}}",
            ),
            unit="percentunit",
            steps=above(0.75, 0.9),
            highest=1,
        ),
        series(
            "Spent today against the cap",
            "As the worker that knows most knows it, some seconds old.",
            Query(f"max by (task, role) (goldstream_budget_spent_usd{{{T}}})", "{{task}} {{role}}"),
            Query(f"max by (task, role) (goldstream_budget_cap_usd{{{T}}})", "{{task}} {{role}} cap"),
            unit=USD,
        ),
        states(
            "Held by a budget",
            "When a cap, of money or a minute, let a role make no call. Its cases wait.",
            Query(f"max by (task, role) (goldstream_budget_held{{{T}}})", "{{task}}: {{role}}"),
            values={"0": ("calls", "green"), "1": ("held", "orange")},
        ),
    )
    made.row(
        "Calls",
        series(
            "Calls, by result",
            "Each try by itself.",
            Query(f"sum by (result) (rate({CALLS}{{{R}}}[$__rate_interval]))", "{{result}}"),
            unit="cps",
            stack=True,
        ),
        series(
            "Calls, by role",
            "All results.",
            Query(f"sum by (role) (rate({CALLS}{{{R}}}[$__rate_interval]))", "{{role}}"),
            unit="cps",
        ),
        series(
            "Calls that fail, by model",
            "Share of all; no line where a model had no calls.",
            Query(
                f'1 - sum by (model) (rate({CALLS}{{{R},result="ok"}}[$__rate_interval])) / '
                f"sum by (model) (rate({CALLS}{{{R}}}[$__rate_interval]))",
                "{{model}}",
            ),
            unit="percentunit",
            highest=1,
            steps=above(0.2),
        ),
        series(
            "How long calls take",
            "Of answered calls, by role: median and the slowest twentieth.",
            Query(quantile(0.5), "{{role}} p50"),
            Query(quantile(0.95), "{{role}} p95"),
            unit="s",
        ),
        heat(
            "Calls by how long they took",
            "Answered calls a second in each bucket.",
            Query(f"sum by (le) (rate({SECONDS}_bucket{{{R}}}[$__rate_interval]))", "{{le}}"),
            "s",
        ),
        series(
            "Calls in flight",
            "Waiting for their answer now, by role.",
            Query(f"sum by (role) (goldstream_model_calls_in_flight{{{R}}})", "{{role}}"),
        ),
        states(
            "Endpoints",
            "By role and model: held while the circuit breaker is open.",
            Query(
                f'max by (role, model) (goldstream_model_endpoints_held{{{J},role=~"$role"}}) > bool 0',
                "{{role}}: {{model}}",
            ),
            values={"0": ("answers", "green"), "1": ("held", "red")},
            size=(24, 7),
        ),
    )
    made.row(
        "Tokens",
        series(
            "Tokens a second, by kind",
            "Prompt and completion, as the answers' usage says.",
            Query(f"sum by (kind) (rate({TOKENS}{{{R}}}[$__rate_interval]))", "{{kind}}"),
            unit="cps",
            stack=True,
        ),
        series(
            "Tokens a second, by role",
            "Both kinds.",
            Query(f"sum by (role) (rate({TOKENS}{{{R}}}[$__rate_interval]))", "{{role}}"),
            unit="cps",
        ),
        bars(
            "Tokens per gold row",
            "Of ended cases, by role and kind, all time.",
            Query(f"sum by (role, kind) (goldstream_cases_tokens{{{R}}}) / scalar({gold})", "{{role}}: {{kind}}"),
        ),
    )
    return made
