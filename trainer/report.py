"""gate.html: one self-contained page that says why a candidate was promoted or refused.

`render_page` is a pure function of the report and what lies beside it; trainer.run writes the page into the registry.
Prompts and answers are hostile text: every one goes through `_text`, the page holds no script, and its policy would
run none.
"""

from __future__ import annotations

import difflib
import html
import json
import re
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from schemas.adapters import AdapterManifest, Comparison, GateReport
from schemas.case import Violation
from trainer.gate import Shown

SHOWN_CHARS = 4000  # of one text; a longer one is cut, and says so
DIFFED_WORDS = 1500  # of both answers; beyond that they stand beside each other without marks
CURVE_POINTS = 200
WIDTH, HEIGHT = 640, 200  # of a chart


class Gated(NamedTuple):
    """One version of the same line in the chart of pass rates."""

    version: str
    before: float
    after: float
    decision: str


def read_losses(folder: Path) -> list[float]:
    """Returns the loss of each step from a version's steps.jsonl; lines that hold none are passed over."""
    losses: list[float] = []
    try:
        lines = (folder / "steps.jsonl").read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return losses
    for line in lines:
        try:
            losses.append(float(json.loads(line)["loss"]))
        except (ValueError, KeyError, TypeError):
            continue
    return losses


def render_page(
    report: GateReport,
    manifest: AdapterManifest,
    *,
    losses: Sequence[float] = (),
    history: Sequence[Gated] = (),
    shown: Sequence[Shown] = (),
) -> str:
    """Returns the page as HTML; `history` is what earlier gates of the line found, this one last."""
    title = f"{_text(report.task)} {_text(report.version)}"
    parts = [
        f"<h1>{title} <span class='badge {report.decision}'>{_DECIDED[report.decision]}</span></h1>",
        f"<p class=reason>{_text(report.reason)}</p>",
        _what_happens(report),
        _figures(report),
        _facts(report, manifest),
        "<h2>Rules broken</h2>",
        _rules(report),
        "<h2>Loss of the run</h2>",
        _curve(losses),
        "<h2>Pass rate on the holdout, by version</h2>",
        _versions(history),
        "<h2>Answers that changed</h2>",
        *_examples(report, shown),
    ]
    return _PAGE.replace("TITLE", title).replace("BODY", "\n".join(part for part in parts if part))


def without_examples(page: str, case_ids: Collection[str]) -> str:
    """Returns a page as it was, but for the texts of some cases; that there was an example stays to be seen.

    Every text on a page is escaped, so no example can end another's article or begin one.
    """

    def left(found: re.Match[str]) -> str:
        if html.unescape(found[1]) not in names:
            return found[0]
        return "<article><p class=note>This case was forgotten.</p></article>"

    names = {html.unescape(_text(case_id)) for case_id in case_ids}
    return re.sub(r"<article><h3><span [^>]*>\w+</span> ([^<]*)</h3>.*?</article>", left, page, flags=re.DOTALL)


def word_diff(before: str, after: str) -> tuple[str, str]:
    """Returns both texts as HTML: what only one of them has is marked, del in the first and ins in the second."""
    old, new = _words(before), _words(after)
    if len(old) + len(new) > DIFFED_WORDS:
        return _text(before), _text(after)
    left: list[str] = []
    right: list[str] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        gone, come = _text("".join(old[a:b])), _text("".join(new[c:d]))
        left.append(gone if kind == "equal" or not gone else f"<del>{gone}</del>")
        right.append(come if kind == "equal" or not come else f"<ins>{come}</ins>")
    return "".join(left), "".join(right)


_DECIDED = {"promote": "passed", "refuse": "refused", "undecided": "undecided"}


def _text(text: str) -> str:
    """Escapes text for HTML, inside and outside of attributes; what does not print becomes a visible mark.

    Direction overrides would let a text show itself as another, so they count as not printing.
    """
    return html.escape("".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text))


def _cut(text: str) -> str:
    over = len(text) - SHOWN_CHARS
    return text if over <= 0 else f"{text[:SHOWN_CHARS]}\n[{over} more characters are not shown]"


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]", text)


def _what_happens(report: GateReport) -> str:
    said = {
        ("promote", "auto"): "Promotion is automatic: unless somebody promoted another version meanwhile, it serves.",
        ("promote", "manual"): "Promotion is manual: it waits for <code>goldstream adapters promote</code>.",
        ("promote", "shadow"): (
            "Shadow: it would have been promoted, and was not. <code>goldstream adapters promote</code> does it."
        ),
        ("refuse", "shadow"): "Shadow: it would have been refused.",
    }
    kept = "What served before keeps serving."
    return f"<p>{said.get((report.decision, report.promotion), kept)}</p>"


def _figures(report: GateReport) -> str:
    """The table of figures: thinking off, which decides, and on where it was asked."""
    heads = "<th></th><th>thinking off</th>" + ("<th>thinking on</th>" if report.thinking else "")
    sides: list[GateReport | Comparison] = [report, *([report.thinking] if report.thinking else [])]
    rows = [
        ("cases", [f"{side.cases}" for side in sides]),
        ("pass rate before", [f"{side.before:.1%}" for side in sides]),
        ("pass rate after", [f"<b>{side.after:.1%}</b>" for side in sides]),
        ("only the candidate passes", [f"{side.gained}" for side in sides]),
        ("only the incumbent passes", [f"{side.lost}" for side in sides]),
        ("mean score before", [f"{side.score_before:.1%}" for side in sides]),
        ("mean score after", [f"{side.score_after:.1%}" for side in sides]),
        ("difference of mean scores", [f"{side.score_low:+.1%} to {side.score_high:+.1%}" for side in sides]),
        (f"p ({_TESTS[report.test]})", [f"{side.p_value:.2g}" for side in sides]),
    ]
    body = "".join(f"<tr><th>{name}</th>{''.join(f'<td>{c}</td>' for c in cells)}</tr>" for name, cells in rows)
    note = "<p class=note>Thinking off decides; thinking on is told besides.</p>" if report.thinking else ""
    return f"<table class=figures><tr>{heads}</tr>{body}</table>{note}"


_TESTS = {"mcnemar": "McNemar, exact", "bootstrap": "paired bootstrap of scores"}


def _facts(report: GateReport, manifest: AdapterManifest) -> str:
    trained = manifest.training
    at = datetime.fromtimestamp((report.at_ms or manifest.created_ms) / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts = [
        ("compared with", report.incumbent or "the base without an adapter"),
        ("base", f"{manifest.base} ({manifest.base_sha256[:8]})"),
        ("trained on", f"{manifest.rows} cases, {manifest.pairs} pairs"),
        ("recipe", str(manifest.settings.get("recipe", ""))),
        ("steps", f"{trained.get('steps', 0):.0f} in {trained.get('seconds', 0):.0f} s"),
        ("seed, revision", f"{manifest.seed}, {manifest.revision[:10] or 'unknown'}"),
        ("judge", report.judge),
        ("rubric, holdout", f"{report.rubric or '?'}, {report.holdout_sha256[:8] or '?'}"),
        ("gated", f"{at}, in {report.seconds:.0f} s"),
    ]
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{_text(said)}</dd>" for name, said in facts if said) + "</dl>"


def _rules(report: GateReport) -> str:
    rules = sorted({*report.violations_before, *report.violations_after})
    if not rules:
        return "<p class=note>No answer broke a rule, or none was judged.</p>"
    most = max([*report.violations_before.values(), *report.violations_after.values(), 1])
    rows = []
    for rule in rules:
        before, after = report.violations_before.get(rule, 0), report.violations_after.get(rule, 0)
        kind = "better" if after < before else "worse" if after > before else ""
        bars = "".join(
            f"<div class='bar {side}' style='width:{100 * count / most:.1f}%'></div>"
            for side, count in (("old", before), ("new", after))
        )
        rows.append(
            f"<tr><th>{_text(rule)}</th><td>{before}</td><td class='{kind}'>{after}</td><td class=bars>{bars}</td></tr>"
        )
    heads = "<tr><th></th><th>before</th><th>after</th><th></th></tr>"
    return f"<table class=rules>{heads}{''.join(rows)}</table>"


def _curve(losses: Sequence[float]) -> str:
    """The loss per step, as means of equal stretches where there are more steps than points."""
    if len(losses) < 2:
        return "<p class=note>The run left no steps.jsonl with two steps or more.</p>"
    stretch = -(-len(losses) // CURVE_POINTS)
    means = [sum(part) / len(part) for part in (losses[i : i + stretch] for i in range(0, len(losses), stretch))]
    top = max(means) or 1.0
    points = [(index / max(len(means) - 1, 1), value / top) for index, value in enumerate(means)]
    line = " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in points)
    labels = _label(0, 1, f"{top:.3g}") + _label(0, 0, "0")
    steps = f"<text x='{WIDTH - 8}' y='{HEIGHT - 4}' text-anchor='end'>{len(losses)} steps</text>"
    return _chart(f"<polyline class=new points='{line}'/>{labels}{steps}", f"loss, {means[0]:.3g} to {means[-1]:.3g}")


def _versions(history: Sequence[Gated]) -> str:
    """Each gated version's pass rate, a filled dot where it passed; the incumbent's as a dash."""
    if not history:
        return "<p class=note>This is the first version of its base with a decision.</p>"
    marks = []
    for index, gated in enumerate(history):
        x = _x((index + 0.5) / len(history))
        kind = "dot" if gated.decision == "promote" else "ring"
        name = _text(gated.version.partition("-")[0])
        tip = f"{_text(gated.version)}: {gated.before:.1%} to {gated.after:.1%}, {_DECIDED[gated.decision]}"
        marks.append(
            f"<line class=old x1='{x - 14:.1f}' x2='{x + 14:.1f}' y1='{_y(gated.before):.1f}' "
            f"y2='{_y(gated.before):.1f}'/><circle class={kind} cx='{x:.1f}' cy='{_y(gated.after):.1f}' r=5>"
            f"<title>{tip}</title></circle>"
            f"<text x='{x:.1f}' y='{HEIGHT - 4}' text-anchor=middle>{name}</text>"
        )
    labels = _label(0, 1, "100 %") + _label(0, 0.5, "50 %") + _label(0, 0, "0 %")
    key = "<p class=note>Dot: the version, filled where it passed. Dash: what it was compared with.</p>"
    return _chart("".join(marks) + labels, "pass rates by version") + key


def _examples(report: GateReport, shown: Sequence[Shown]) -> Iterator[str]:
    if not shown:
        yield "<p class=note>None: no answer changed, none was judged, or gate.report_examples is 0.</p>"
        return
    changed = report.gained + report.lost
    yield f"<p class=note>{len(shown)} of them; {changed} cases changed between passing and failing.</p>"
    for one in shown:
        before, after = word_diff(_cut(one.before), _cut(one.after))
        prompt = "\n\n".join(f"{message.role}: {message.text()}" for message in one.messages)
        yield (
            f"<article><h3><span class='badge {one.change}'>{one.change}</span> {_text(one.case_id)}</h3>"
            f"<details><summary>prompt</summary><pre>{_text(_cut(prompt))}</pre></details>"
            f"<div class=pair><section><h4>before</h4><pre>{before}</pre>{_violations(one.violations_before)}</section>"
            f"<section><h4>after</h4><pre>{after}</pre>{_violations(one.violations_after)}</section></div></article>"
        )


def _violations(violations: Sequence[Violation]) -> str:
    if not violations:
        return "<p class=ok>breaks no rule</p>"
    items = []
    for one in violations[:20]:
        quoted = f" <q>{_text(_cut(one.hinge))}</q>" if one.hinge else ""
        items.append(f"<li><b>{_text(one.rule)}</b> ({_text(one.severity)}){quoted} {_text(_cut(one.why))}</li>")
    return f"<ul>{''.join(items)}</ul>"


def _x(share: float) -> float:
    return 48 + share * (WIDTH - 64)


def _y(share: float) -> float:
    return 12 + (1 - share) * (HEIGHT - 36)


def _label(x: float, y: float, text: str) -> str:
    rule = f"<line class=grid x1='{_x(0)}' x2='{_x(1)}' y1='{_y(y):.1f}' y2='{_y(y):.1f}'/>"
    return f"{rule}<text x='{_x(x) - 6:.1f}' y='{_y(y) + 4:.1f}' text-anchor=end>{_text(text)}</text>"


def _chart(inside: str, title: str) -> str:
    return f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img aria-label='{_text(title)}'>{inside}</svg>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
:root { color-scheme: light; --ink: #1c2430; --soft: #667085; --line: #d9dee7; --good: #14743c; --bad: #b42318; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 960px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; } h3, h4 { margin: .5rem 0; }
h3 { font-size: 1rem; } h4 { font-size: .85rem; color: var(--soft); font-weight: 600; }
.reason { font-size: 1.05rem; margin: .5rem 0; } .note { color: var(--soft); font-size: .9rem; }
.badge { border-radius: 4px; padding: .1em .5em; font-size: .8em; color: #fff; background: var(--soft); }
.promote, .gained { background: var(--good); } .refuse, .lost { background: var(--bad); }
table { border-collapse: collapse; margin: 1rem 0; } th { text-align: left; font-weight: 500; color: var(--soft); }
th, td { padding: .2rem .9rem .2rem 0; border-bottom: 1px solid var(--line); } td { text-align: right; }
tr:first-child th { text-align: right; }
td, dd { font-variant-numeric: tabular-nums; } .rules { width: 100%; } .bars { width: 45%; }
.bar { height: 7px; margin: 2px 0; border-radius: 2px; }
.bar.old { background: #b3bccb; } .bar.new { background: #2f6fde; }
.better, .ok { color: var(--good); } .worse { color: var(--bad); font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; } dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; } svg { width: 100%; max-width: 720px; font: 12px system-ui, sans-serif; }
svg text { fill: var(--soft); } .grid { stroke: var(--line); } line.old { stroke: #8792a6; stroke-width: 3; }
polyline { fill: none; stroke: #2f6fde; stroke-width: 2; } .dot { fill: #2f6fde; }
.ring { fill: #fff; stroke: #2f6fde; stroke-width: 2; }
article { border-top: 1px solid var(--line); padding: .5rem 0 1rem; } summary { cursor: pointer; color: var(--soft); }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; } section { min-width: 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f7f9; padding: .6rem; border-radius: 4px;
  font: 13px/1.45 ui-monospace, monospace; margin: 0; unicode-bidi: isolate; }
del { background: #fde3e1; text-decoration: none; } ins { background: #d9f2e1; text-decoration: none; }
ul { padding-left: 1.2rem; font-size: .9rem; } p.ok { font-size: .9rem; margin: .4rem 0; } q { font-style: italic; }
@media (max-width: 640px) { .pair { grid-template-columns: 1fr; } }
</style></head><body>
BODY
</body></html>
"""
