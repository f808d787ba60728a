"""The benchmark's picture: learning curves against prompts and judge calls, transfer and controls, in one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from schemas.errors import SetupError
from trainer.methods.benchmark import Report
from trainer.methods.table import METHODS

WIDTH, HEIGHT, DPI = 17.0, 10.0, 80
# One color a method in every panel, in the table's order.
COLORS = (
    "tab:blue", "tab:olive", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:gray", "tab:cyan",
    "tab:orange", "black", "navy",
)  # fmt: skip


def plot(report: Report, path: Path) -> None:
    """Writes the picture. Raises SetupError where matplotlib is not installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise SetupError(
            "the plot needs matplotlib, which is not installed: pip install -c deploy/constraints.txt -e '.[dev]'. "
            "The table and --json need nothing more."
        ) from error
    figure, axes = pyplot.subplots(2, 3, figsize=(WIDTH, HEIGHT), layout="constrained")
    families = {name: METHODS[name].family for name in report.curves}
    base = report.bases["student"][0].passed

    def names(*wanted: str) -> list[str]:
        return [name for name, family in families.items() if family in wanted]

    _curves(axes[0][0], report, names("sft"), "size", "SFT family", base)
    _curves(axes[0][1], report, [*(["isft"] if "isft" in families else []), *names("iw")], "size", "Weights", base)
    _curves(axes[0][2], report, [*(["rgt"] if "rgt" in families else []), *names("rl")], "size", "On policy", base)
    asked = [name for name in names("sft", "rl") if report.curves[name][-1]["judge_calls"] > 0]
    _curves(axes[1][0], report, asked, "judge_calls", "Against judge calls", base)
    _curves(axes[1][1], report, names("sft"), "size", "Unseen drugs and phrasings", None, "unseen_passed")
    _bars(axes[1][2], report, names("control"))
    figure.suptitle(f"{report.task}: pass rate on the holdout, {len(report.runs)} runs, revision {report.revision}")
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)


def _curves(
    axis: Any,
    report: Report,
    names: Sequence[str],
    against: str,
    title: str,
    base: float | None,
    what: str = "passed",
) -> None:
    for name in names:
        points = report.curves[name]
        xs = [point[against] for point in points]
        means = [100 * point[what]["mean"] for point in points]
        halves = [100 * (point[what]["half"] or 0.0) for point in points]
        color = COLORS[list(METHODS).index(name) % len(COLORS)]
        axis.plot(xs, means, marker="o", markersize=4, label=METHODS[name].title, color=color)
        lows = [mean - half for mean, half in zip(means, halves, strict=True)]
        highs = [mean + half for mean, half in zip(means, halves, strict=True)]
        axis.fill_between(xs, lows, highs, color=color, alpha=0.12, linewidth=0)
    if base is not None:
        axis.axhline(100 * base, color="grey", linestyle=":", label="base, untrained")
    axis.set(xscale="log", ylim=(0, 100), title=title, ylabel="pass, %")
    axis.set_xlabel("judge calls" if against == "judge_calls" else "unique prompts")
    if against == "size":
        sizes = sorted({point["size"] for name in names for point in report.curves[name]})
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
    axis.grid(alpha=0.3)
    if names:
        axis.legend(fontsize=8, loc="lower right")


def _bars(axis: Any, report: Report, controls: Sequence[str]) -> None:
    """Draws the controls at their largest size, seen and unseen, with iSFT and RGT of that size above them."""
    size = max((report.curves[name][-1]["size"] for name in controls), default=0)
    rows = []
    for name in [*(n for n in ("isft", "rgt") if n in report.curves), *controls]:
        point = next((p for p in report.curves[name] if p["size"] == size), None)
        if point is not None:
            rows.append((METHODS[name].title, point))
    for offset, what, label in ((-0.2, "passed", "seen"), (0.2, "unseen_passed", "unseen")):
        places = [place + offset for place in range(len(rows))]
        means = [100 * point[what]["mean"] for _, point in rows]
        halves = [100 * (point[what]["half"] or 0.0) for _, point in rows]
        axis.barh(places, means, height=0.38, xerr=halves, label=label, error_kw={"linewidth": 0.8})
    axis.set_yticks(range(len(rows)), [title for title, _ in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set(xlim=(0, 100), xlabel="pass, %", title=f"Controls at {size} prompts")
    axis.grid(alpha=0.3, axis="x")
    if rows:
        axis.legend(fontsize=8, loc="lower right")
