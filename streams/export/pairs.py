"""Which rows are exported, what is left out and why, and the pairs that come of the others.

Pair A is prompt -> answer, pair B prompt -> strategy, answer; trainer.dataset makes the same two.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import duckdb
import msgspec

from schemas.case import Message
from schemas.chat import strategy_text
from schemas.errors import GoldError
from schemas.ngrams import HeldOut
from schemas.outcomes import row_messages, row_strategy
from schemas.settings import Settings
from schemas.settings.training import Trainer
from schemas.tools import answer_words, template_tools
from streams.statements import reading_statements

Pairs = Literal["rgt", "sft"]
Split = Literal["train", "test"]
_ROWS = 1000  # at a time; bounds the memory their texts take

LEFT_OUT = {
    "holdout": "the gate asks it: training on it would make every gate meaningless",
    "contaminated": "too many of its runs of words are in the holdout too: trainer.max_overlap",
    "empty_answer": "no answer of it was accepted",
    "think_tags": "its answer or strategy holds <think> or </think>, which chat templates take for thinking",
    "words_and_calls": "the format wants a text or calls of tools, and a turn of this conversation has both",
    "no_alternation": "the format wants users and assistants in turns, and this prompt has two of one in a row",
}
FACTS = (
    "task",
    "dt",
    "outcome",
    "corrected",
    "rounds",
    "score",
    "max_score",
    "rubric",
    "accepted_by",
    "accepted_kind",
    "answered_by",
    "strategy_id",
)  # what travels of a row with its pairs


class LeftOut(Exception):
    """A row that a format cannot hold; the text is a key of LEFT_OUT."""


class Pair(NamedTuple):
    """One example: A, or B with the strategy before the answer."""

    case_id: str
    pair: Literal["A", "B"]
    split: Split
    messages: list[Message]
    tools: list[dict[str, Any]]
    strategy: str  # "" for A
    answer: str  # its words
    calls: list[dict[str, Any]]  # of tools, that the answer makes behind its words
    facts: dict[str, Any]  # FACTS


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What to export. `since` and `until` are days, the last one included."""

    task: str | None = None
    pairs: Pairs = "rgt"
    where: str = ""
    since: str = ""
    until: str = ""
    with_holdout: bool = False  # as split "test"
    with_contaminated: bool = False


class Selection:
    """The rows of one export. `pairs` streams them, and `cases`, `made`, `left_out` and `seen` count as it does."""

    def __init__(self, settings: Settings, connection: duckdb.DuckDBPyConnection, choice: Choice) -> None:
        self.settings, self.connection, self.choice = settings, connection, choice
        self.cases: Counter[str] = Counter()  # by split
        self.made: Counter[str] = Counter()  # pairs, by A and B
        self.left_out: Counter[str] = Counter()  # rows, by a key of LEFT_OUT
        self.seen: dict[str, Counter[str]] = {name: Counter() for name in (*_COUNTED, "placeholders")}
        self._held: dict[str, HeldOut] = {}  # by task
        self._condition = _condition(choice)

    def uses_tools(self) -> bool:
        """Tells whether any message is more than a role and a text, or any prompt offered tools."""
        rich = "tools IS NOT NULL OR len(list_filter(messages, lambda m: m.json IS NOT NULL)) > 0"
        rich += " OR answer_tool_calls IS NOT NULL"
        return bool(self._ask(f"SELECT 1 FROM outcomes WHERE {self._condition} AND ({rich}) LIMIT 1").fetchall())

    def pairs(self) -> Iterator[list[Pair]]:
        """Yields the pairs of each row in the order of the log; a format may refuse one with `leave_out`.

        Raises GoldError where `where` is no condition over the columns of `outcomes`.
        """
        if not self.choice.with_contaminated:
            self._read_holdout()
        columns = ", ".join(dict.fromkeys((*_COLUMNS, *FACTS)))
        source = "(SELECT *, attempts[-1].model AS answered_by FROM outcomes)"
        sql = f"SELECT {columns} FROM {source} WHERE {self._condition} ORDER BY kafka_partition, kafka_offset"
        result = self._ask(sql)
        names = [column[0] for column in result.description or []]
        while batch := self._fetch(result):
            for values in batch:
                row = dict(zip(names, values, strict=True))
                try:
                    pairs = self._pairs_of(row)
                except LeftOut as reason:
                    self.left_out[str(reason)] += 1
                    continue
                yield pairs

    def count(self, pairs: list[Pair]) -> None:
        """Counts the pairs of a row that were written."""
        self.cases[pairs[0].split] += 1
        self.made.update(pair.pair for pair in pairs)
        facts = pairs[0].facts
        for name in _COUNTED:
            if facts[name] not in (None, ""):
                self.seen[name][str(facts[name])] += 1
        kinds = {re.sub(r"_?\d+$", "", placeholder).lower() for placeholder in facts["placeholders"] or ()}
        self.seen["placeholders"].update(kinds)

    def _pairs_of(self, row: dict[str, Any]) -> list[Pair]:
        held_out = row["outcome"] == "holdout" or row["split"] == "holdout"
        if held_out and not self.choice.with_holdout:
            raise LeftOut("holdout")
        if not row["answer"]:
            raise LeftOut("empty_answer")
        strategy = row_strategy(row)
        block = strategy_text(strategy) if strategy and self.choice.pairs == "rgt" else ""
        if any(tag in text for tag in ("<think>", "</think>") for text in (row["answer"], block)):
            raise LeftOut("think_tags")
        if not held_out and not self.choice.with_contaminated and self._contaminated(row):
            raise LeftOut("contaminated")
        split: Split = "test" if held_out else "train"
        tools = template_tools(msgspec.json.decode(row["tools"])) if row["tools"] else []
        calls = msgspec.json.decode(row["answer_tool_calls"]) if row["answer_tool_calls"] else []
        facts = {name: row[name] for name in (*FACTS, "placeholders")}
        words = answer_words(row["answer"], calls)
        a = Pair(row["case_id"], "A", split, row_messages(row), tools, "", words, calls, facts)
        return [a, a._replace(pair="B", strategy=block)] if block else [a]

    def _contaminated(self, row: dict[str, Any]) -> bool:
        """Tells whether training would leave the row out too (trainer.contamination)."""
        task = self.settings.tasks.get(row["task"])
        limit = (task.trainer if task else Trainer()).max_overlap
        if limit >= 1:
            return False
        held = self._held.get(row["task"])
        return held is not None and held.overlap(row["prompt"], row["answer"]).share > limit

    def _read_holdout(self) -> None:
        """Reads the holdout, and all gold beside it: what is exported of it does not decide what its template is."""
        these = {"task": self.choice.task}
        held = self.connection.execute(
            "SELECT task, case_id, prompt, production_answer FROM holdout WHERE $task IS NULL OR task = $task", these
        )
        while batch := held.fetchmany(_ROWS):
            for task, case_id, prompt, answer in batch:
                self._held.setdefault(task, HeldOut()).add(case_id, prompt, answer)
        gold = self.connection.execute(
            """SELECT task, prompt, answer FROM gold WHERE split = 'train' AND task IN (SELECT task FROM holdout)
            AND ($task IS NULL OR task = $task) ORDER BY kafka_partition, kafka_offset""",
            these,
        )
        while batch := gold.fetchmany(_ROWS):
            for task, prompt, answer in batch:
                if task in self._held:  # some may have landed in between
                    self._held[task].count(prompt, answer)

    def _ask(self, sql: str) -> Any:
        choice = self.choice
        asked = {"task": choice.task, "since": choice.since, "until": choice.until}
        try:
            return self.connection.execute(sql, asked)
        except duckdb.Error as error:
            raise _refused(choice, error) from error

    def _fetch(self, result: Any) -> list[tuple[Any, ...]]:
        try:
            rows: list[tuple[Any, ...]] = result.fetchmany(_ROWS)
            return rows
        except duckdb.Error as error:  # a condition may fail at some row
            raise _refused(self.choice, error) from error


_COUNTED = ("task", "rubric", "accepted_by", "accepted_kind", "answered_by", "corrected")
_COLUMNS = (
    "case_id",
    "split",
    "messages",
    "tools",
    "prompt",
    "answer",
    "answer_tool_calls",
    "placeholders",
    "strategy_mistake",
    "strategy_guardrail",
    "strategy_model",
)


def _refused(choice: Choice, error: duckdb.Error) -> GoldError:
    if not choice.where:
        return GoldError(f"the gold set cannot be read: {error}")
    return GoldError(
        f"--where {choice.where!r}: DuckDB refuses it: {error}\nExpected a condition over the columns of `outcomes`, "
        "such as corrected AND score = max_score."
    )


def _condition(choice: Choice) -> str:
    condition = """outcome IN ('gold', 'holdout') AND ($task IS NULL OR task = $task)
        AND ($since = '' OR dt >= $since) AND ($until = '' OR dt <= $until)"""
    if not choice.where:
        return condition
    try:
        alone = len(reading_statements(f"SELECT 1 WHERE ({choice.where}\n)")) == 1
    except duckdb.Error as error:
        raise GoldError(f"--where {choice.where!r} is no condition: {error}") from error
    if not alone:
        raise GoldError(f"--where {choice.where!r} holds more than one statement; expected a condition.")
    return f"{condition} AND ({choice.where}\n)"
