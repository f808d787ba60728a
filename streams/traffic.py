"""The demo's product: a synthetic clinical scribe that logs its calls to prod.scribe.chat, as a product would.

Runs as a process of its own; Goldstream only consumes what it logs. It chooses conversations by the
split they fall into, so that the demo's waves have the sizes it announces; intake decides the split
itself, by the same keyed hash.
"""

from __future__ import annotations

import json
import random
import time
from typing import Any

from agents.scribe.scripted import write_draft
from agents.scribe.transcripts import make_transcript
from schemas.case import Split
from schemas.settings import Settings
from streams.admission.admit import split_of
from streams.clients import make_producer

TOPIC = "prod.scribe.chat"


def send_traffic(settings: Settings, count: int, split: Split, seed: int) -> str:
    """Logs `count` calls whose conversations fall into `split`; returns a line that says so."""
    rng = random.Random(seed)
    producer = make_producer(settings, "product")
    waiting: list[Any] = []
    number = 0
    try:
        while len(waiting) < count:
            number += 1
            transcript, facts = make_transcript(rng)
            answer = write_draft(facts, rng)
            if split_of(settings, transcript) != split:
                continue
            record = json.dumps(log_record(f"chatcmpl-{seed}-{number}", transcript, answer)).encode()
            waiting.append(producer.send(TOPIC, value=record, key=f"clinic-{number % 7}".encode()))
        for future in waiting:
            future.get(timeout=30)
    finally:
        producer.close(timeout=10)
    return f"{count} {split} conversations logged to {TOPIC}"


def log_record(request_id: str, transcript: str, answer: str) -> dict[str, object]:
    """Returns one call as the product logs it: OpenAI request and response side by side."""
    now = int(time.time())
    return {
        "timestamp": now,
        "request": {
            "model": "scribe-large-2026",
            "messages": [{"role": "user", "content": transcript}],
            "temperature": 0.2,
            "max_tokens": 128,
        },
        "response": {
            "id": request_id,
            "object": "chat.completion",
            "created": now,
            "model": "scribe-large-2026",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"},
            ],
            "usage": {
                "prompt_tokens": len(transcript) // 4,
                "completion_tokens": len(answer) // 4,
                "total_tokens": (len(transcript) + len(answer)) // 4,
            },
        },
    }
