"""What a case knows of its log record besides the conversation: what checks can compare an answer with.

A plain object, since JMESPath expressions of the settings look into it; the same from a case and from its row.
"""

from __future__ import annotations

from typing import Any

import msgspec

from schemas.case import Case

RECORD_COLUMNS = ("production_answer", "production_model", "workload", "params", "feedback", "tools")


def case_record(case: Case) -> dict[str, Any]:
    """Returns what can be looked up of a case's record."""
    return {name: getattr(case, name) for name in RECORD_COLUMNS} | {"tools": list(case.tools)}


def row_record(row: dict[str, Any]) -> dict[str, Any]:
    """Returns the same from a row that has RECORD_COLUMNS."""
    record = {name: row[name] for name in RECORD_COLUMNS}
    for name, empty in (("params", {}), ("feedback", {}), ("tools", [])):
        record[name] = msgspec.json.decode(record[name]) if record[name] else empty
    return record
