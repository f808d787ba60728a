"""Claims about who may read and write on the dashboard, and what every answer carries. No Kafka is needed."""

from __future__ import annotations

import logging
import socket
import stat
from pathlib import Path

import pytest
from dashboard_client import Dashboard
from steps import until

from schemas import kafka as kafka_settings
from schemas.errors import SettingsError
from schemas.settings import Dashboard as DashboardSettings
from schemas.settings import Settings
from streams.dashboard.access import WRITES, find_token, is_loopback
from streams.dashboard.server import read_place
from streams.dashboard.terminal import running_dashboard

REDRIVE = "/api/dead/redrive"
NOTHING = {"ids": ["nobody"], "reason": "both"}  # refused, but only after the token


def here(tmp_path: Path, **dashboard: object) -> Settings:
    chosen = DashboardSettings(**({"port": "auto"} | dashboard))  # type: ignore[arg-type]
    return Settings(state_dir=str(tmp_path / "state"), dashboard=chosen)


def test_a_write_without_the_token_is_refused_and_told_where_it_lies(tmp_path: Path) -> None:
    with Dashboard(here(tmp_path)) as dashboard:
        for token in ("", "wrong", dashboard.token[:-1], dashboard.token + "x", "ä"):
            reply = dashboard.post(REDRIVE, NOTHING, token=token.encode().decode("latin-1"))
            assert reply.status == 401
            assert "dashboard.token" in reply.json["next"]
        assert dashboard.post(REDRIVE, NOTHING).status == 400
        assert [dashboard.get("/api/access", token=t).json["write"] for t in ("", dashboard.token)] == [False, True]


def test_the_token_lies_in_a_file_that_only_we_can_read_and_outlives_a_restart(tmp_path: Path) -> None:
    settings = here(tmp_path)
    with Dashboard(settings) as dashboard:
        path = settings.state / "dashboard.token"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_text().strip() == dashboard.token == find_token(settings)[0]
        assert dashboard.token not in (settings.state / "run" / "dashboard.json").read_text()
        assert dashboard.token in running_dashboard(settings, secret=True)[0]
        assert dashboard.token not in "".join(running_dashboard(settings, secret=False))
    assert read_place(settings) is None
    path.chmod(0o644)  # others could have read it
    assert find_token(settings)[0] != dashboard.token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_token_of_a_variable_is_used_and_a_short_one_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = here(tmp_path, token_env="DASHBOARD_TOKEN")
    monkeypatch.setenv("DASHBOARD_TOKEN", "a-long-enough-secret")
    with Dashboard(settings) as dashboard:
        assert dashboard.get("/api/access", token="a-long-enough-secret").json["write"]
    assert not (settings.state / "dashboard.token").exists()
    monkeypatch.setenv("DASHBOARD_TOKEN", "short")
    with pytest.raises(SettingsError, match="at least 16"), Dashboard(settings):
        pass


def test_a_name_that_is_not_ours_is_refused_so_that_no_site_can_rebind_its_own(tmp_path: Path) -> None:
    with Dashboard(here(tmp_path, names=("dash.example.org",))) as dashboard:
        port = dashboard.place.port
        for name in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "", "[::1"):
            assert dashboard.get("/", Host=name).status == 403, name
            assert dashboard.post(REDRIVE, NOTHING, Host=name).status == 403, name
        for name in ("localhost", f"127.0.0.1:{port}", f"[::1]:{port}", "DASH.example.org", "dash.example.org:443"):
            assert dashboard.get("/api/access", Host=name).status == 200, name


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_a_page_of_another_site_cannot_write_even_with_the_token(tmp_path: Path, headers: dict[str, str]) -> None:
    with Dashboard(here(tmp_path)) as dashboard:
        assert dashboard.post(REDRIVE, NOTHING, **headers).status == 403
        own = f"http://127.0.0.1:{dashboard.place.port}"
        assert dashboard.post(REDRIVE, NOTHING, Origin=own, Sec_Fetch_Site="same-origin").status == 400


def test_beyond_loopback_reading_needs_the_token_and_a_cookie_is_good_for_reading_alone(tmp_path: Path) -> None:
    with Dashboard(here(tmp_path, host="0.0.0.0")) as dashboard:
        assert dashboard.get("/api/cases").status == 401
        assert dashboard.get("/api/events").status == 401
        assert dashboard.get("/api/access").json["reads_need_token"] is True
        assert dashboard.get("/api/cases", token=dashboard.token).status == 200
        reply = dashboard.post("/api/session", {})
        cookie, *rest = reply.headers["Set-Cookie"].split("; ")
        assert {"HttpOnly", "SameSite=Strict"} <= set(rest)
        assert dashboard.token not in cookie
        assert dashboard.get("/api/cases", Cookie=cookie).status == 200
        assert dashboard.get("/api/cases", Cookie=cookie[:-1] + "x").status == 401
        assert dashboard.post(REDRIVE, NOTHING, token="", Cookie=cookie).status == 401


def test_bodies_that_are_no_json_too_large_or_too_many_are_refused(tmp_path: Path) -> None:
    with Dashboard(here(tmp_path)) as dashboard:
        assert dashboard.post(REDRIVE, b"{}", Content_Type="text/plain").status == 415
        assert dashboard.post(REDRIVE, b"{").status == 400
        assert "colour" in dashboard.post(REDRIVE, {"colour": "red"}).json["error"]
        assert dashboard.post(REDRIVE, b'"' + b"x" * 1_100_000 + b'"').status == 413
        statuses = [dashboard.post(REDRIVE, NOTHING).status for _ in range(WRITES)]
        assert statuses[-1] == 429
        assert dashboard.get("/api/access").status == 200


def test_every_answer_forbids_foreign_scripts_frames_and_guesses(tmp_path: Path) -> None:
    with Dashboard(here(tmp_path)) as dashboard:
        for path in ("/", "/app.js", "/app.css", "/api/access", "/api/nothing", "/nothing.js"):
            reply = dashboard.get(path)
            assert reply.headers["X-Content-Type-Options"] == "nosniff"
            assert "script-src 'self'" in reply.headers["Content-Security-Policy"]
            assert "unsafe" not in reply.headers["Content-Security-Policy"]
            assert reply.headers["Cache-Control"] == ("no-store" if path.startswith("/api/") else "no-cache")
        assert dashboard.get("/").headers["Content-Type"] == "text/html; charset=utf-8"
        assert dashboard.get("/app.js").headers["Content-Type"] == "text/javascript; charset=utf-8"


def test_nothing_but_the_page_is_served_as_a_file(tmp_path: Path) -> None:
    with Dashboard(here(tmp_path)) as dashboard:
        paths = (
            "/../state.py",
            "/%2e%2e/state.py",
            "/..%2fstate.py",
            "/state.py",
            "/.hidden.js",
            "/a%00.js",
            "//app.js/",
        )
        assert [dashboard.get(path).status for path in paths] == [404] * len(paths)
        assert dashboard.ask("DELETE", "/api/cases", None, dashboard.token, {}).status == 405


def test_the_log_has_no_ids_texts_or_tokens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "goldstream.dashboard")
    with Dashboard(here(tmp_path)) as dashboard:
        dashboard.get("/api/cases?text=private+words", token=dashboard.token)
        dashboard.get("/api/adapters/toy/private-id/report")
        logged = "\n".join(record.getMessage() for record in caplog.records)
        assert "GET /api/cases 200" in logged
        assert not any(word in logged for word in ("private", dashboard.token))


def test_a_port_that_is_taken_is_passed_over(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Dashboard(here(tmp_path, port=port)) as dashboard:
            assert port < dashboard.place.port < port + 20


def test_loopback_is_told_from_what_only_looks_like_it() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "127.0.0.1.example", "")))


def test_a_page_that_is_closed_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kafka_settings, "BOOTSTRAP_TIMEOUT_MS", 500)
    caplog.set_level(logging.INFO, logger="goldstream.dashboard")
    with Dashboard(here(tmp_path, refresh_s=0.5)) as dashboard:
        heard = dashboard.events()
        next(heard)
        heard.close()  # type: ignore[attr-defined]
        until(lambda: "GET /api/events 200" in caplog.text)
    assert "Traceback" not in caplog.text
    assert "aiohttp" not in caplog.text
