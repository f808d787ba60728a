"""When the gold set is compacted, and where its snapshots are published."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from schemas.settings.section import NotNegative, Positive, Seconds, Section


class Publish(Section, frozen=True):
    """A bucket that compacted snapshots are copied to. Credentials come from the environment, as for every AWS tool."""

    s3: Annotated[str, Meta(pattern=r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._/-]*)?)?$")] = ""
    endpoint: str = ""  # of a store that is not AWS, such as "http://minio:9000"
    region: str = ""  # "": as the environment says


class Gold(Section, frozen=True):
    """When landing files are compacted, and how long what was superseded stays for readers that began before."""

    compact: bool = True  # beside the sink, by itself; `goldstream gold compact` works either way
    compact_files: Positive = 100  # landing files that make it due; every reader opens each of them
    compact_after_s: Seconds = 3600.0  # or the oldest of several is this old
    grace_s: NotNegative = 300.0  # superseded files stay this long: no query of yours should take longer
    merge_files: Annotated[int, Meta(ge=2)] = 10  # small files of one day and outcome that make it worth to merge them
    large_mb: Positive = 128  # a file this large is merged no more
    publish: Publish = Publish()
