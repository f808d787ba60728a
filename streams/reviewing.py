"""Reviewing at a terminal: one case at a time, one key a decision. `goldstream review` runs it.

Everything it does to a case goes through streams.review; what it shows of models and logs cannot steer the terminal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from agents.expert import Decision
from schemas.errors import ReviewError
from schemas.settings import Settings
from schemas.tables import printable
from streams.review import Item, decide, show_case

_SHOWN = 6000  # characters of a text
_KEYS = "a accept   e edit and accept   r reject   0-9 accept that attempt   s skip   q quit"


class Session:
    """A reviewer at work. `read_key`, `edit` and `ask` are the terminal's; `edit` gives None for nothing saved."""

    def __init__(
        self,
        settings: Settings,
        by: str,
        console: Console,
        read_key: Callable[[], str],
        edit: Callable[[str], str | None],
        ask: Callable[[str], str],
    ) -> None:
        self._settings, self._by, self._console = settings, by, console
        self._read_key, self._edit, self._ask = read_key, edit, ask
        self.done: Counter[str] = Counter()

    def run(self, items: Iterable[Item]) -> Counter[str]:
        """Shows cases until there are none left or the reviewer quits; returns what was done how often."""
        waiting = list(items)
        for number, item in enumerate(waiting, 1):
            try:
                shown = show_case(self._settings, item.case_id)
            except ReviewError as error:
                self._say(str(error))
                continue
            self._show(shown, item, f"{number} of {len(waiting)}")
            if not self._decide(shown):
                break
        return self.done

    def _decide(self, shown: dict[str, Any]) -> bool:
        """Takes keys until one decides or skips; returns False for quit."""
        row = shown["case"]
        rounds = [attempt["round"] for attempt in row["attempts"]]
        while True:
            key = self._read_key().lower()
            if key in ("q", "\x03", "\x04", "\x1b"):
                return False
            if key == "s":
                self.done["skipped"] += 1
                return True
            decision = None
            if key == "a":
                decision = Decision(decision="accept", by=self._by, round=shown["proposed_round"])
            elif key.isdecimal() and int(key) in rounds:
                decision = Decision(decision="accept", by=self._by, round=int(key))
            elif key == "e":
                decision = self._edited(shown)
            elif key == "r":
                decision = self._rejected(row["task"])
            else:
                self._say(_KEYS)
                continue
            if decision is not None and self._made(row["case_id"], decision):
                return True

    def _edited(self, shown: dict[str, Any]) -> Decision | None:
        row = shown["case"]
        before = next(a["text"] for a in row["attempts"] if a["round"] == shown["proposed_round"])
        text = self._edit(before)
        if text is None:
            self._say("nothing was saved")
            return None
        text = text.rstrip("\n") if not before.endswith("\n") else text  # editors end a file with a line end
        return Decision(decision="edit", by=self._by, text=text)

    def _rejected(self, task: str) -> Decision | None:
        rules = self._settings.task(task).rubric.rules
        for number, rule in enumerate(rules, 1):
            self._say(f"  {number} {rule.id}: {rule.text}")
        numbers = self._ask("broken rules, by number (empty: none of them)").replace(",", " ").split()
        if any(not n.isdecimal() or not 1 <= int(n) <= len(rules) for n in numbers):
            self._say(f"expected numbers from 1 to {len(rules)}; not rejected")
            return None
        reason = self._ask("what is wrong, in a sentence").strip()
        if not reason:
            self._say("a rejection needs a reason; not rejected")
            return None
        broken = tuple(rules[int(n) - 1].id for n in numbers)
        return Decision(decision="reject", by=self._by, reason=reason, rules=broken)

    def _made(self, case_id: str, decision: Decision) -> bool:
        """Makes a decision; returns False where another key is wanted."""
        try:
            decided = decide(self._settings, case_id, decision)
        except ReviewError as error:
            self._say(str(error))
            return "edited answer" not in str(error)  # else somebody was faster, and the next case comes
        if decided.stands:
            self.done[decided.decision] += 1
            self._say(f"{decided.decision}: {case_id} is {decided.outcome} now, epoch {decided.epoch}", "green")
        else:
            self.done["too late"] += 1
            self._say(f"too late, this one does not count: {decided.detail}", "yellow")
        return True

    def _show(self, shown: dict[str, Any], item: Item, place: str) -> None:
        row = shown["case"]
        why = "the judge accepted it" if item.why == "accepted" else f"unresolved: {item.reason or 'no reason kept'}"
        self._console.print(Rule(Text(f"{place}   {printable(item.case_id)}   {item.task}   {why}", "bold")))
        for message in row["messages"] or []:
            self._console.print(Text(f"{printable(message['role'])}:", "cyan"))
            self._text(message["content"])
        for attempt in row["attempts"] or []:
            by = f"{attempt['refiner'] or attempt['source']} {printable(attempt['model'])}"
            adapter = f" with {attempt['adapter']}" if attempt["adapter"] else ""
            self._console.print(Text(f"attempt {attempt['round']}, by {by}{adapter}:", "cyan"))
            self._text(attempt["text"])
            if attempt["passed"] is not None:
                judged = "passed" if attempt["passed"] else "failed"
                score = f"{attempt['score']:g} of {attempt['max_score']:g}"
                style = "green" if attempt["passed"] else "red"
                self._say(f"  {judged}, {score}, by {attempt['judge']}", style)
            for violation in attempt["violations"] or []:
                quote = f' at "{violation["hinge"]}"' if violation["hinge"] else ""
                self._say(f"    {violation['severity']} {violation['rule']}{quote}: {violation['why']}", "red")
        if row["strategy_guardrail"]:
            self._say(f"strategy {row['strategy_id'] or ''}: {row['strategy_mistake']} {row['strategy_guardrail']}")
        self._say(f"a accepts attempt {shown['proposed_round']}", "bold")
        self._say(_KEYS, "bold")

    def _text(self, text: str | None) -> None:
        for line in (text or "")[:_SHOWN].splitlines():
            self._say("  " + line)
        if len(text or "") > _SHOWN:
            self._say(f"  ... {len(text or '')} characters in all; `goldstream review show ID --json` has them")

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(Text(printable(text), style))
