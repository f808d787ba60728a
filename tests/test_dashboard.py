"""Claims about the dashboard's API on a real broker and a real gold set: what it tells, and does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from dashboard_client import Dashboard
from ended_cases import ended, land
from judged_cases import FAILED, PASSED, rows, toy
from pipeline import STUB_TASK, openai_record, produce
from rolling import InThread, ListRecords
from steps import Make, cases_on, put, sink_all, start, until
from test_dlq import died
from toys import NEW, OLD, a_manifest, a_report

from schemas import kafka as kafka_settings
from schemas.case import Attempt, Case, Message
from schemas.settings import Dashboard as DashboardSettings
from schemas.settings import Settings, load_settings
from streams.dashboard import live, operating
from streams.lag import LagReader
from trainer.orders import KafkaCommands
from trainer.registry import promote, promotions, publish, write_gate

HOSTILE = "<script>alert(1)</script>\u2028</textarea>'\"&"


def on_any_port(settings: Settings, **dashboard: Any) -> Settings:
    chosen = DashboardSettings(port="auto", refresh_s=0.5, **dashboard)
    return msgspec.structs.replace(settings, dashboard=chosen)


def nodes(state: dict[str, Any]) -> dict[str, Any]:
    return {node["id"]: node for node in state["flow"]["nodes"]}


def edges(state: dict[str, Any]) -> dict[str, Any]:
    return {edge["id"]: edge for edge in state["flow"]["edges"]}


def when(dashboard: Dashboard, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Returns the first state of which the condition holds."""
    deadline = time.monotonic() + 60
    while not condition(state := dashboard.get("/api/state").json):
        assert time.monotonic() < deadline, state
        time.sleep(0.2)
    return state


def hostile(number: int) -> Case:
    """Returns a gold case whose texts would be a page's undoing."""
    case = toy(number, PASSED)
    attempt = Attempt(round=0, source="student", text=HOSTILE, model=HOSTILE, verdict=PASSED)
    return msgspec.structs.replace(case, messages=(Message("user", HOSTILE),), attempts=(attempt,))


def test_the_state_tells_lag_on_every_arrow_and_what_has_ended(make_settings: Make) -> None:
    settings = on_any_port(start(make_settings, "logs-dash-state"))
    produce(settings, "logs-dash-state", [openai_record(f"question {n}") for n in range(3)])
    put(settings, "prompts", *(ended(n) for n in range(4)))
    put(settings, "outcomes", toy(1, FAILED, PASSED), toy(2, PASSED), toy(3, FAILED), died(4, "judge", "bad_answer"))
    sink_all(settings)
    with Dashboard(settings) as dashboard:
        state = when(dashboard, lambda s: s["outcomes"] and not s["problems"] and edges(s)["prompts>student"]["lag"])
        assert (state["prefix"], state["tasks"]) == (settings.kafka.topic_prefix, ["toy"])
        arrows, places = edges(state), nodes(state)
        assert arrows["source:logs-dash-state>intake"]["lag"] == 3
        assert arrows["prompts>student"]["topic"] == settings.topic("prompts")
        assert (arrows["prompts>student"]["lag"], arrows["outcomes>sink"]["lag"]) == (4, 0)
        assert sum(one["lag"] for one in arrows["prompts>student"]["partitions"]) == 4
        assert arrows["prompts>student"]["oldest_s"] is not None
        assert places["student"]["state"] == "down", "no worker runs"
        assert {edge["from"] for edge in arrows.values()} | {edge["to"] for edge in arrows.values()} == set(places)
        with LagReader(settings) as reader:
            lags = reader.by_group()
        found = {edge["to"]: 0 for edge in arrows.values() if edge["lag"] is not None}
        for edge in arrows.values():
            if edge["lag"] is not None:
                found[edge["to"]] += edge["lag"]
        assert found == lags
        ends = {end: places[end]["count"] for end in ("gold", "unresolved", "dead", "holdout", "dropped")}
        assert ends == {"gold": 2, "unresolved": 1, "dead": 1, "holdout": 0, "dropped": 0}
        assert state["dead"][0]["reason"] == "bad_answer"
        assert state["review"]["waiting_unresolved"] == 1
        assert state["trainers"][0]["state"] == "never ran"


def test_a_page_hears_at_once_of_what_has_landed_and_of_a_pause(make_settings: Make) -> None:
    settings = on_any_port(start(make_settings, "logs-dash-events"))
    with Dashboard(settings) as dashboard:
        heard = dashboard.events()
        first = next(heard)
        assert nodes(first)["gold"]["count"] in (0, None)
        land(settings.gold, [toy(1, PASSED)])
        assert any(state and nodes(state)["gold"]["count"] == 1 for state in heard)
        reply = dashboard.post("/api/stages/judge/pause", {})
        assert (reply.status, "takes no new work" in reply.json["detail"]) == (200, True)
        assert any(state and state["flow"]["paused"] == ["judge"] for state in heard)
        assert dashboard.post("/api/stages/judge/resume", {}).status == 200
        assert any(state and state["flow"]["paused"] == [] for state in heard)
        assert dashboard.post("/api/stages/moon/pause", {}).status == 400
        assert any(state is None for state in heard), "a page hears a ping where nothing is new"
        heard.close()  # type: ignore[attr-defined]


def test_nobody_reads_while_nobody_looks(make_settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "IDLE_S", 0.5)
    settings = on_any_port(start(make_settings, "logs-dash-idle"))

    def reading() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith(("dashboard-", "follow-"))]

    with Dashboard(settings) as dashboard:
        assert reading() == []
        heard = dashboard.events()
        assert next(heard)["tasks"] == ["toy"]
        assert len(reading()) == 6
        heard.close()  # type: ignore[attr-defined]
        until(lambda: reading() == [])
        assert dashboard.get("/api/state").status == 200, "and begins again"


def test_without_kafka_the_gold_set_is_still_shown_and_the_reason_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_settings, "BOOTSTRAP_TIMEOUT_MS", 500)  # for which every call looks for a broker
    toml = tmp_path / "goldstream.toml"
    toml.write_text(STUB_TASK.format(topic="logs", api_base="http://127.0.0.1:9"))
    away = ["kafka.bootstrap_servers=127.0.0.1:9", f"state_dir={tmp_path / 'state'}"]
    settings = on_any_port(load_settings(toml, away, environ={}))
    land(settings.gold, [toy(1, FAILED, PASSED), toy(2, FAILED)])
    with Dashboard(settings) as dashboard:
        state = when(dashboard, lambda s: s["problems"])
        assert [problem["part"] for problem in state["problems"]] == ["kafka"]
        assert "no Kafka answers at 127.0.0.1:9" in state["problems"][0]["why"]
        assert (nodes(state)["gold"]["count"], edges(state)["prompts>student"]["lag"]) == (1, None)
        assert nodes(state)["judge"]["state"] == "unknown"
        assert state["cost"]["ledger_usd"] is None
        assert [case["case_id"] for case in dashboard.get("/api/cases").json["cases"]] == ["req-2", "req-1"]
        assert dashboard.get("/api/cases/req-1").json["where"] == "gold set"
        assert "no Kafka answers" in dashboard.get("/api/cases/req-2").json["where"], "it may be on its way again"
        assert dashboard.get("/api/cases/nobody").status == 503
        assert [item["case_id"] for item in dashboard.get("/api/review").json["items"]] == ["req-2"]
        assert dashboard.post("/api/review/req-2", {"decision": "accept", "by": "ann"}).status == 503
        assert dashboard.post("/api/adapters/toy/rollback", {"reason": "bad"}).status == 503


def test_an_empty_factory_has_an_answer_to_everything(make_settings: Make) -> None:
    settings = on_any_port(make_settings(STUB_TASK.format(topic="logs-dash-empty", api_base="http://127.0.0.1:9")))
    with Dashboard(settings) as dashboard:  # not even the topics have been made
        state = when(dashboard, lambda s: s["outcomes"])
        assert nodes(state)["source:logs-dash-empty"]["count"] is None
        assert state["passing"] == []
        assert dashboard.get("/api/cases").json == {"cases": [], "next": ""}
        assert dashboard.get("/api/dead").json == {"groups": [], "letters": []}
        assert dashboard.get("/api/review").json == {"items": [], "waiting": {"unresolved": 0, "accepted": 0}}
        assert dashboard.get("/api/cases/nobody").status == 404
        assert dashboard.get("/api/review/nobody").status == 400


def test_cases_are_paged_filtered_and_found_by_their_words(make_settings: Make) -> None:
    settings = on_any_port(start(make_settings, "logs-dash-cases"))
    land(settings.gold, [toy(n, PASSED) for n in range(5)] + [toy(n, FAILED) for n in range(5, 8)])
    with Dashboard(settings) as dashboard:
        seen: list[str] = []
        before = ""
        while True:
            page = dashboard.get(f"/api/cases?limit=3&before={before}").json
            seen += [case["case_id"] for case in page["cases"]]
            before = page["next"]
            if not before:
                break
        assert seen == [f"req-{n}" for n in range(7, -1, -1)]

        def found(query: str) -> list[str]:
            return [case["case_id"] for case in dashboard.get(f"/api/cases?{query}").json["cases"]]

        assert found("outcome=unresolved") == ["req-7", "req-6", "req-5"]
        assert found("text=QUESTION+3") == ["req-3"]
        assert found("text=req-6") == ["req-6"]
        assert found("text=polite") == ["req-7", "req-6", "req-5"]
        assert found("text=%25") == []
        assert found("task=other") == []
        for query in ("outcome=moon", "limit=0", "limit=x", "before=x", f"text={'x' * 400}"):
            assert dashboard.get(f"/api/cases?{query}").status == 400, query


def test_a_story_is_told_of_a_case_that_has_ended_and_of_one_on_its_way(make_settings: Make) -> None:
    settings = on_any_port(start(make_settings, "logs-dash-story"))
    land(settings.gold, [toy(1, FAILED, PASSED)])
    moving = msgspec.structs.replace(toy(2, FAILED), outcome=None)
    put(settings, "refine", moving)
    with Dashboard(settings) as dashboard:
        story = dashboard.get("/api/cases/req-1").json
        assert (story["where"], story["case"]["outcome"]["kind"]) == ("gold set", "gold")
        assert story["case"]["attempts"][0]["verdict"]["violations"][0]["severity"] == "major"
        assert any("attempt 1" in line for line in story["lines"])
        story = dashboard.get("/api/cases/req-2").json
        assert (settings.topic("refine") in story["where"], story["case"]["outcome"]) == (True, None)
        assert dashboard.get("/api/cases/..%2f..%2fetc").status == 404


def test_hostile_texts_are_data_and_nothing_else(make_settings: Make) -> None:
    settings = on_any_port(start(make_settings, "logs-dash-hostile"))
    land(settings.gold, [hostile(1)])
    with Dashboard(settings) as dashboard:
        for path in ("/api/cases", "/api/cases/req-1", "/api/cases?text=%3Cscript%3E"):
            reply = dashboard.get(path)
            assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
            assert HOSTILE[:20] in str(reply.json)
        missing = dashboard.get("/api/cases/%3Cscript%3Ealert(1)%3C%2Fscript%3E")
        assert (missing.status, missing.headers["Content-Type"]) == (404, "application/json")


def test_dead_letters_go_round_again_and_a_dry_run_sends_nothing(make_settings: Make) -> None:
    settings = on_any_port(start(make_settings, "logs-dash-dead"))
    letters = [died(n, "judge", "bad_answer") for n in range(1, 4)] + [died(4, "student", "model_timeout")]
    put(settings, "outcomes", *letters)
    sink_all(settings)
    with Dashboard(settings) as dashboard:
        told = dashboard.get("/api/dead?reason=bad_answer").json
        assert [(g["reason"], g["letters"]) for g in told["groups"]] == [("bad_answer", 3), ("model_timeout", 1)]
        assert [letter["case_id"] for letter in told["letters"]] == ["req-3", "req-2", "req-1"]
        chosen = {"reason": "bad_answer", "stage": "judge"}
        dry = dashboard.post("/api/dead/redrive", chosen | {"dry_run": True}).json
        assert (dry["counts"], cases_on(settings, "attempts")) == ({"would be redriven": 3}, [])
        assert dashboard.post("/api/dead/redrive", chosen, token="").status == 401
        assert cases_on(settings, "attempts") == []
        assert dashboard.post("/api/dead/redrive", chosen).json["counts"] == {"redriven": 3}
        assert [(case.case_id, case.epoch) for case in cases_on(settings, "attempts")] == [
            (f"req-{n}", 1) for n in range(1, 4)
        ]
        assert dashboard.post("/api/dead/redrive", {"ids": ["req-4", "req-1"]}).json["counts"] == {
            "redriven": 1,
            "on its way": 1,
        }
        for wrong in ({}, {"reason": "bad_answer"}, {"ids": ["x"], "reason": "y"}, {"ids": ["x"] * 101}):
            assert dashboard.post("/api/dead/redrive", wrong).status == 400


def test_an_experts_decision_is_made_once_and_the_second_is_told_so(make_settings: Make) -> None:
    settings = on_any_port(start(make_settings, "logs-dash-review"))
    put(settings, "outcomes", toy(1, FAILED), toy(2, FAILED))
    sink_all(settings)
    with Dashboard(settings) as dashboard:
        assert dashboard.get("/api/review").json["waiting"] == {"unresolved": 2, "accepted": 0}
        case = dashboard.get("/api/review/req-1").json
        assert (case["in_queue"], case["rounds"], case["proposed_text"]) == (True, [0], "answer 0")
        assert [rule["id"] for rule in case["rules"]] == ["polite"]
        edit = {"decision": "edit", "by": "ann", "text": "please wait", "rules": ["polite"]}
        made = dashboard.post("/api/review/req-1", edit)
        assert (made.status, made.json["stands"], made.json["outcome"]) == (200, True, "gold")
        assert "edit by ann" in dashboard.get("/api/review/req-1").json["decided"]
        again = dashboard.post("/api/review/req-1", {"decision": "reject", "by": "bob", "reason": "no"})
        assert (again.status, "ann" in again.json["error"]) == (409, True)
        assert dashboard.post("/api/review/req-2", {"decision": "reject", "by": "ann"}).status == 400, "no reason"
        assert dashboard.post("/api/review/req-2", {"decision": "burn", "by": "ann"}).status == 400
        sink_all(settings)
        assert rows(settings)[0] == ("req-1", "gold", 1, "please wait", "edit")
        state = when(dashboard, lambda s: s["review"]["decisions"] == 1)
        assert state["review"]["waiting_unresolved"] == 1


def test_a_rollback_reaches_rollout_and_its_answer_the_page(
    make_settings: Make, settings: Settings, base: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = start(make_settings, "logs-dash-rollback")
    line = on_any_port(msgspec.structs.replace(settings, kafka=here.kafka, state_dir=here.state_dir))
    for version in (OLD, NEW):
        publish(line.adapters, run_folder, a_manifest(base, version))
        write_gate(line.adapters, a_report(version), "<h1>gate</h1><script>alert(1)</script>")
        promote(line.adapters, "toy", version, by="gate", reason="better")
    with Dashboard(line) as dashboard:
        state = when(dashboard, lambda s: s["adapters"])
        (adapters,) = state["adapters"]
        assert (adapters["wanted"], adapters["promotions"], adapters["roll_back_to"]) == (NEW, 2, OLD)
        assert [version["version"] for version in adapters["versions"]] == [NEW, OLD]
        assert dashboard.post("/api/adapters/toy/rollback", {"reason": ""}).status == 400
        assert dashboard.post("/api/adapters/nobody/rollback", {"reason": "x"}).status == 400
        assert dashboard.post("/api/adapters/toy/promote", {"reason": "x", "version": "../x"}).status == 400
        asked = {"reason": "doses are wrong", "by": "ann", "version": NEW, "promotions": 2}
        with InThread(line, ListRecords(), commands=KafkaCommands(line)):
            reply = dashboard.post("/api/adapters/toy/rollback", asked)
            assert (reply.status, reply.json["result"]) == (200, "done")
            assert promotions(line.adapters, "toy")[-1].version == OLD
            late = dashboard.post("/api/adapters/toy/rollback", asked)
            assert (late.status, "somebody has decided since" in late.json["detail"]) == (409, True)
        answered = ["refused", "done"]
        state = when(dashboard, lambda s: [one["result"] for one in s["adapters"][0]["commands"]] == answered)
        assert state["adapters"][0]["wanted"] == OLD
        monkeypatch.setattr(operating, "ANSWER_S", 0.3)
        nobody = dashboard.post("/api/adapters/toy/promote", {"reason": "back", "version": NEW})
        assert (nobody.status, nobody.json["result"]) == (202, "asked")
        report = dashboard.get(f"/api/adapters/toy/{NEW}/report")
        assert report.text.startswith("<h1>gate")
        assert report.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
        assert dashboard.get(f"/api/adapters/toy/{NEW}x/report").status == 404
        assert dashboard.get("/api/adapters/toy/..%2f..%2f/report").status == 404
