"""Which SQL may run over the gold set: what reads it and does nothing else. For `goldstream gold sql` and its shell."""

from __future__ import annotations

import re
from typing import Any

import duckdb

from schemas.errors import GoldError

_COMMENTS = re.compile(r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*", re.DOTALL)
_EXPLAIN = re.compile(r"explain\b(?:\s+analyze\b|\s*\([^()]*\))?", re.IGNORECASE)
_QUESTION = re.compile(r"(?:select|with|from|pivot|unpivot|describe|summarize)\b|\(", re.IGNORECASE)


def reading_statements(sql: str) -> list[Any]:
    """Returns the statements of a text, all of which only read.

    Raises GoldError where one does more, or where there is none; duckdb.Error for what is no SQL.
    """
    statements = duckdb.extract_statements(sql)
    if not statements:
        raise GoldError("the query is empty; try: SELECT outcome, count(*) FROM outcomes GROUP BY outcome")
    for statement in statements:
        kind = _more_than_reading(statement)
        if kind:
            raise GoldError(
                f"a {kind} statement does more than read, so it is not run here. To export or to keep tables, load "
                "streams/views.sql in a DuckDB client of your own, its header says how; or `goldstream gold export`."
            )
    return list(statements)


def _more_than_reading(statement: Any) -> str:
    """Returns what a statement is that does more than read, "" where it reads."""
    kind: str = statement.type.name
    text = statement.query[_comments(statement.query) :]
    if kind == "SELECT":
        return ""
    if kind == "EXPLAIN":  # EXPLAIN ANALYZE runs what it explains
        explain = _EXPLAIN.match(text)
        explained = duckdb.extract_statements(text[explain.end() :]) if explain else []
        return next(filter(None, map(_more_than_reading, explained)), "") if explained else kind
    if kind == "MULTI" and _QUESTION.match(text):  # a PIVOT; COPY and CREATE of one are MULTI too
        return ""
    first = re.match(r"\w+", text)
    return first[0].upper() if kind == "MULTI" and first else kind


def _comments(text: str) -> int:
    found = _COMMENTS.match(text)
    return found.end() if found else 0
