"""Calls of tools: that the tool was offered, and that the arguments are what it takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agents.verifiers.finding import Finding
from agents.verifiers.json_schema import schema_errors
from agents.verifiers.reference import Record
from schemas.settings.verifiers import ToolCallsCheck
from schemas.tools import CLOSE, OPEN, answer_text, read_answer, template_tools

_PER_CALL = 3  # objections to the arguments of one call


def check_calls(check: ToolCallsCheck, answer: str, record: Record = None) -> list[Finding]:
    """Finds calls that could not be made: of tools nobody offered, or with arguments their schema refuses.

    `record` says what was offered (schemas.record); without it no tool was.
    """
    offered = {tool["function"]["name"]: tool["function"] for tool in template_tools((record or {}).get("tools") or ())}
    allowed = [name for name in offered if not check.only or name in check.only]
    _, calls = read_answer(answer)
    if not calls and OPEN in answer:
        start = answer.find(OPEN)
        why = f"a call is not one JSON object with a name between {OPEN} and {CLOSE}"
        return [Finding(answer[start : start + 80], why, 'Write {"name": "...", "arguments": {...}} there.')]
    found: list[Finding] = []
    if check.required and not calls:
        found.append(
            Finding("", "the answer calls no tool", f"Call one of: {', '.join(allowed) or 'none is offered'}.")
        )
    if check.most is not None and len(calls) > check.most:
        found.append(Finding("", f"the answer makes {len(calls)} calls; at most {check.most} are allowed"))
    for call in calls:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        if name not in allowed:
            known = ", ".join(allowed) or "none"
            found.append(Finding(_name_in(answer, name), f"{name!r} is no tool that may be called here; {known} may"))
            continue
        block = answer_text("", (call,))
        hinge = block if block in answer else ""
        found += [Finding(hinge, f"{name}: {why}") for why in _wrong(offered[name], arguments)]
    return found


def _wrong(function: Mapping[str, Any], arguments: str) -> list[str]:
    try:
        value = json.loads(arguments, parse_constant=_refused) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return ["its arguments are not JSON"]
    if not isinstance(value, dict):
        return ["its arguments are no JSON object"]
    return [f"arguments: {why}" for why in schema_errors(dict(function["parameters"]), value, _PER_CALL)]


def _name_in(answer: str, name: str) -> str:
    written = json.dumps(name, ensure_ascii=False)
    return written if written in answer else ""


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
