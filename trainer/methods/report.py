"""The benchmark's report for people: tables in Markdown, as the log keeps them and a terminal shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from trainer.methods.benchmark import Report
from trainer.methods.curves import GRID
from trainer.methods.table import METHODS


def markdown(report: Report) -> str:
    """Returns the whole report: bases, pass rates and scores by size, costs, prompts needed, controls, failures."""
    main = [name for name in report.curves if METHODS[name].family != "control"]
    controls = [name for name in report.curves if METHODS[name].family == "control"]
    sizes = sorted({point["size"] for name in main for point in report.curves[name]})
    parts = [
        f"Task {report.task}, {report.at}, revision {report.revision}, {len(report.runs)} runs.",
        _table(
            ["base, untrained", "pass", "normalised score", "pass, unseen drugs and phrasings"],
            [[name, _share(s.passed), _share(s.score), _share(u.passed)] for name, (s, u) in report.bases.items()],
        ),
    ]
    for what, title in (
        ("passed", "Pass rate, % (mean over seeds ± half the 95 % interval)"),
        ("score", "Normalised score, % (mean points / 6)"),
        ("unseen_passed", "Pass rate on unseen drugs and phrasings, %"),
    ):
        if main:
            parts += [f"**{title}**", _table(["method", *_heads(sizes)], [_row(report, m, sizes, what) for m in main])]
    if main:
        parts += ["**Costs at the largest size (mean a run)**", _costs(report, main)]
        parts += ["**Unique prompts needed, and as a multiple of RGT's**", _needed(report, main)]
        parts += ["**Pass rate less iSFT's, paired by seed, points**", _differences(report, [*main, *controls])]
    thinking = [name for name in main if any("thinking_passed" in p for p in report.curves[name])]
    if thinking:
        rows = [_row(report, name, sizes, "thinking_passed") for name in thinking]
        parts += ["**Pass rate with thinking on, %**", _table(["method", *_heads(sizes)], rows)]
    if controls:
        few = sorted({point["size"] for name in controls for point in report.curves[name]})
        heads = ["control", *(f"{h}, {kind}" for kind in ("seen", "unseen") for h in _heads(few))]
        rows = [
            [*_row(report, name, few, "passed"), *_row(report, name, few, "unseen_passed")[1:]] for name in controls
        ]
        parts += ["**Controls, pass rate %**", _table(heads, rows)]
    if report.failures:
        parts += ["**Runs that failed**", "\n".join(f"- {line}" for line in report.failures)]
    return "\n\n".join(parts)


def _heads(sizes: Sequence[int]) -> list[str]:
    return [f"{size} prompts" for size in sizes]


def _row(report: Report, name: str, sizes: Sequence[int], what: str) -> list[str]:
    by_size = {point["size"]: point for point in report.curves[name]}
    return [METHODS[name].title, *(_interval(by_size.get(size, {}).get(what)) for size in sizes)]


def _costs(report: Report, names: Sequence[str]) -> str:
    rows = []
    for name in names:
        last = report.curves[name][-1]
        spent = [round(last[key]) for key in ("size", "judge_calls", "generated_tokens", "trained_tokens", "steps")]
        rows.append([METHODS[name].title, *(f"{n:,}" for n in spent), f"{last['cpu_s']:.0f}", f"{last['seeds']}"])
    heads = ["prompts", "judge calls", "generated tokens", "trained tokens", "optimiser steps", "CPU s", "seeds"]
    return _table(["method", *heads], rows)


def _needed(report: Report, names: Sequence[str]) -> str:
    heads = [f"{what}{suffix}" for what in report.needed for suffix in ("", ", x RGT")]
    rows = []
    for name in (name for name in names if name in report.fits):
        row = [METHODS[name].title]
        for what, found in report.needed.items():
            ratio = report.relative[what].get(name)
            told = "-" if ratio is None or "at most" in _count(found, "rgt") else f"{ratio:.2f}"
            row += [_count(found, name), told]
        seeds = sorted(report.by_seed.get(name, []))
        row.append(f"{seeds[0]:.2f} to {seeds[-1]:.2f} ({len(seeds)})" if seeds else "-")
        fit = report.fits[name]
        rows.append([*row, f"{fit['a']:.3f} + {fit['b']:.4f}·ln n, R² {fit['r2']:.2f}"])
    return _table(["method", *heads, "fitted x RGT by seed", "fit"], rows)


def _count(found: dict[str, float | None], name: str) -> str:
    if name not in found:
        return "-"
    count = found[name]
    if count is None:
        return "not reached"
    if count <= GRID[0]:  # only a fitted curve starts this high
        return f"at most {count:.0f}"
    return f"{count:,.1f}" if count < 100 else f"{count:,.0f}"


def _differences(report: Report, names: Sequence[str]) -> str:
    sizes = sorted({entry["size"] for name in names for entry in report.differences.get(name, [])})
    rows = []
    for name in names:
        by_size = {entry["size"]: entry for entry in report.differences.get(name, [])}
        if by_size:
            rows.append([METHODS[name].title, *(_interval(by_size.get(n, {}).get("passed"), "+") for n in sizes)])
    return _table(["method", *_heads(sizes)], rows)


def _interval(found: dict[str, Any] | None, sign: str = "") -> str:
    if found is None:
        return "-"
    half = "" if found["half"] is None else f" ± {100 * found['half']:.1f}"
    return f"{100 * found['mean']:{sign}.1f}{half}"


def _share(value: float) -> str:
    return f"{value:.1%}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
