"""How a process of ours logs: one line each to standard error, and what repeats itself only now and then.

Every command that runs on calls it. GOLDSTREAM_LOG and GOLDSTREAM_LOG_LIBRARIES set the levels.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

LIBRARIES = ("kafka", "aiokafka", "faust", "mode", "LiteLLM", "httpx", "asyncio")
REPEAT_S = 30.0


class Seldom(logging.Filter):
    """Lets a library say the same thing once in REPEAT_S: a broker that is away is several lines a second."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tells whether a record is shown; the same thing is the same text before its arguments are put in."""
        if record.name.partition(".")[0] not in LIBRARIES:
            return True
        key, now = (record.name, str(record.msg)), self._clock()
        if now - self._said.get(key, float("-inf")) < REPEAT_S:
            return False
        if len(self._said) > 1000:  # a library that formats its texts itself
            self._said.clear()
        self._said[key] = now
        if record.name.startswith("kafka.net"):
            record.exc_info = None  # a socket that closed while it was read: the line says it
        return True


def log_to_stderr(level: str = "INFO") -> None:
    """Sets up logging for a process, once."""
    logging.basicConfig(
        level=os.environ.get("GOLDSTREAM_LOG", level), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    libraries = os.environ.get("GOLDSTREAM_LOG_LIBRARIES", "WARNING")
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(libraries)
    if libraries == "WARNING":  # whoever asks for more wants to see all of it
        logging.getLogger("kafka.net.selector").setLevel("ERROR")  # it warns of a tenth of a second on a busy machine
        for handler in logging.getLogger().handlers:
            handler.addFilter(Seldom())
