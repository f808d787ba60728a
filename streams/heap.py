"""The garbage collector in a process that passes cases on: it looks at what is new, seldom at what stays."""

from __future__ import annotations

import gc

_NEW_OBJECTS, _YOUNG, _MIDDLE = 10_000, 10, 10  # before a look at the new, at these, at all; Python begins at 700


def settle_heap() -> None:
    """Takes what was loaded until now out of the collector's sight; to be called once a process has started."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, _YOUNG, _MIDDLE)
