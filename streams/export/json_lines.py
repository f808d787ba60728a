"""A file of JSON lines whose beginning shows every type in it.

`datasets` takes each column's type from the first megabytes of a file; a key that is null there and holds a value later
ends in an error. So the first line that holds a value under such a key is moved to the front where it comes late.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import msgspec

_EARLY = 64 << 10  # bytes; a line that begins before is seen in time, so that small files keep the log's order
_COPIED = 1 << 20  # bytes at once
_OF_MESSAGES = ("name", "tool_calls", "tool_call_id", "reasoning_content")


class JsonLines:
    """One file, written line by line; `close` moves what must be seen first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("wb")
        self._at = 0
        self._first: dict[str, tuple[int, int]] = {}  # key that may be null -> its first line's start and end

    def add(self, row: Any) -> None:
        """Adds a line."""
        line = msgspec.json.encode(row) + b"\n"
        self._file.write(line)
        for key in _held(row) - self._first.keys():
            self._first[key] = (self._at, self._at + len(line))
        self._at += len(line)

    def close(self) -> None:
        """Closes the file, its lines in the order they came but for the few that show a type late."""
        self._file.close()
        late = sorted({(start, end) for start, end in self._first.values() if start >= _EARLY})
        if not late:
            return
        rest = zip([0, *(end for _, end in late)], [*(start for start, _ in late), self._at], strict=True)
        ordered = self.path.with_name(f"{self.path.name}.ordered")
        with self.path.open("rb") as source, ordered.open("wb") as target:
            for start, end in (*late, *rest):
                _copy(source, target, start, end)
        ordered.replace(self.path)


def _held(row: dict[str, Any]) -> set[str]:
    """Returns the keys of a row, or of its messages, that may be null and are not."""
    messages = [message for part in ("prompt", "completion", "messages") for message in row.get(part) or ()]
    held = {name for message in messages for name in _OF_MESSAGES if message.get(name)}
    return held | ({"tools"} if row.get("tools") else set())


def _copy(source: BinaryIO, target: BinaryIO, start: int, end: int) -> None:
    source.seek(start)
    while start < end:
        data = source.read(min(_COPIED, end - start))
        target.write(data)
        start += len(data)
