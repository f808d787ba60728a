"""Claims about the webhook, on a real HTTP server on loopback: what is told, to whom, and that nobody waits for it."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest
from test_trainer_service import once, untrained
from toys import TOY, a_report, toy_gold, with_task

from schemas.settings import Gate, Settings
from schemas.settings import Webhook as WebhookSettings
from trainer import webhook as webhook_module
from trainer.registry import list_adapters
from trainer.webhook import Webhook, make_event

VARIABLE = "GOLDSTREAM_TEST_WEBHOOK"
SECRET = "/hooks/s3cr3t-t0ken"


class Receiver:
    """An HTTP server that keeps what it was sent and answers with the next of `answers`, then 204."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.answers: list[int] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.paths.append(self.path)
                receiver.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                status = receiver.answers.pop(0) if receiver.answers else 204
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_GET(self) -> None:
                receiver.paths.append(f"GET {self.path}")
                self.send_response(204)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}{SECRET}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}).start()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setattr(webhook_module, "FIRST_PAUSE_S", 0.01)
    server = Receiver()
    monkeypatch.setenv(VARIABLE, server.url)
    yield server
    server.server.shutdown()
    server.server.server_close()


def told(**settings: Any) -> Webhook:
    """Sends one refusal and waits until it was told or given up."""
    sender = Webhook(WebhookSettings(url_env=VARIABLE, **settings))
    report = a_report("v0002-bbbbbb", decision="refuse")
    sender.send(make_event("refusal", "toy", report.version, previous="", by="gate", reason=report.reason, gate=report))
    sender.close(20)
    return sender


def test_an_event_carries_figures_and_a_line_for_people(receiver: Receiver) -> None:
    told()
    (body,) = receiver.bodies
    assert receiver.paths == [SECRET]
    assert (body["event"], body["task"], body["version"], body["previous"]) == ("refusal", "toy", "v0002-bbbbbb", "")
    assert (body["by"], body["reason"], body["gate"]["after"], body["gate"]["p_value"]) == (
        "gate",
        "better",
        1.0,
        0.125,
    )
    assert body["id"] == f"toy:refusal:v0002-bbbbbb:{body['at_ms']}"
    assert body["text"] == "Goldstream, toy: v0002-bbbbbb was not promoted; the base keeps serving. better"


@pytest.mark.parametrize(("answers", "calls"), [([503, 429], 3), ([500] * 9, 4), ([404], 1), ([302], 1)])
def test_what_may_pass_is_tried_again_and_what_will_not_is_not(
    receiver: Receiver, answers: list[int], calls: int, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answers = list(answers)
    told(retries=3)
    assert receiver.paths == [SECRET] * calls  # nor is a redirect followed
    assert len({body["id"] for body in receiver.bodies}) == 1
    assert ("was not told" in caplog.text) == (answers[-1] != 429)


def test_a_url_that_never_answers_delays_nobody_and_is_never_written_down(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv(VARIABLE, f"http://127.0.0.1:{silent.getsockname()[1]}{SECRET}")
        sender = Webhook(WebhookSettings(url_env=VARIABLE, timeout_s=0.2, retries=0))
        began = time.monotonic()
        for number in range(200):
            sender.send(make_event("rollback", "toy", f"v{number:04d}-aaaaaa", previous="", by="hand", reason=""))
        assert time.monotonic() - began < 0.5
        sender.close(1)
        assert time.monotonic() - began < 3
    assert "is dropped" in caplog.text
    assert "no answer: TimeoutError" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("url", ["", "ftp://127.0.0.1/s3cr3t", "http://[s3cr3t", "http://127.0.0.1:1/s3cr3t \n"])
def test_an_address_that_cannot_be_used_is_an_error_in_the_log_without_its_text(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, url)
    told(retries=0)
    assert "was not told" in caplog.text
    assert "s3cr3t" not in caplog.text


def test_without_a_variable_no_thread_is_started() -> None:
    before = threading.active_count()
    sender = Webhook(WebhookSettings())
    sender.send(make_event("promotion", "toy", "", previous="", by="hand", reason=""))
    assert threading.active_count() == before
    sender.close()


def test_promotion_waiting_and_refusal_are_told_and_no_word_of_a_prompt(settings: Settings, receiver: Receiver) -> None:
    settings = msgspec.structs.replace(untrained(settings), webhook=WebhookSettings(url_env=VARIABLE))
    toy_gold(settings.gold)
    once(settings)
    first = list_adapters(settings.adapters, "toy")[-1].version
    assert [body["event"] for body in receiver.bodies] == ["promotion"]
    assert (receiver.bodies[0]["version"], receiver.bodies[0]["previous"]) == (first, "")
    once(with_task(settings, gate=Gate(min_holdout=4, promotion="manual")))
    once(with_task(settings, gate=Gate(min_holdout=4, min_gain=1.0)))
    assert [body["event"] for body in receiver.bodies] == ["promotion", "waiting", "refusal"]
    sent = json.dumps(receiver.bodies)
    assert not [color for color in TOY if f"holdout-{color}" in sent or f"{color} " in sent]


def test_a_webhook_that_fails_fails_no_run(settings: Settings, receiver: Receiver) -> None:
    settings = msgspec.structs.replace(untrained(settings), webhook=WebhookSettings(url_env=VARIABLE, retries=0))
    receiver.answers = [500]
    toy_gold(settings.gold)
    report = once(settings)
    assert report is not None
    assert (report.decision, len(receiver.bodies)) == ("promote", 1)
