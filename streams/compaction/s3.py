"""Compacted snapshots in a bucket: `publish` copies what a manifest names, `fetch` brings a snapshot back.

Objects have the names that files have below the gold set's folder. Each is put only if there is none of its name
(If-None-Match: *), the manifest last: of two publishers one is refused, and a reader of the bucket sees a manifest
only when all of its files are there. Credentials come from the environment alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from schemas.errors import Fenced, GoldError, SettingsError
from schemas.forgotten import read_forgotten
from schemas.manifests import DataFile, Manifest, latest_manifest, manifest_path
from schemas.settings.gold import Publish
from streams.compaction.compact import fingerprint

_ABSENT = "*"
_MANIFEST_DIGITS = 20


class Published(msgspec.Struct, kw_only=True):
    """What a publication did."""

    to: str
    manifest: int
    files: int = 0  # copied now
    there: int = 0  # of earlier publications
    bytes: int = 0


def publish_snapshot(gold: Path, settings: Publish, client: Any = None) -> Published:
    """Copies the newest manifest's files and then the manifest to the bucket.

    Raises Fenced where the bucket has another manifest of this number or a newer one: another gold set or publisher
    writes there. Raises GoldError where nothing is compacted, forgotten rows are still in the files, or S3 refuses.
    """
    bucket, prefix = _place(settings.s3)
    manifest = latest_manifest(gold)
    if manifest.number == 0:
        raise GoldError(f"{gold}: only compacted files are published, and there are none: `goldstream gold compact`.")
    if fingerprint(read_forgotten(gold)) != manifest.forgotten:
        raise GoldError(f"{gold}: the compacted files still hold what was forgotten: `goldstream gold compact` first.")
    s3 = client or make_client(settings)
    found = Published(to=f"s3://{bucket}/{prefix}", manifest=manifest.number)
    content = manifest_path(gold, manifest.number).read_bytes()
    newest = _newest(s3, bucket, prefix)
    if newest > manifest.number:
        raise Fenced(
            f"{found.to} has manifest {newest}, this gold set is at {manifest.number}: another one publishes there. "
            "Give each gold set a prefix of its own."
        )
    for file in manifest.files:
        path = gold / file.name
        if _put(s3, bucket, prefix + file.name, path.read_bytes(), file.sha256):
            found.files += 1
            found.bytes += file.bytes
        else:
            found.there += 1
    for extra in (gold / "landing/p=schema/columns.parquet", gold / "forgotten/keys.json"):
        if extra.exists():  # what views.sql asks besides; the newest counts
            s3.put_object(Bucket=bucket, Key=prefix + extra.relative_to(gold).as_posix(), Body=extra.read_bytes())
    name = prefix + manifest_path(gold, manifest.number).relative_to(gold).as_posix()
    _put(s3, bucket, name, content, hashlib.sha256(content).hexdigest())
    return found


def fetch_snapshot(source: str, settings: Publish, folder: Path, client: Any = None) -> Manifest:
    """Brings the newest snapshot of a bucket into a folder and returns its manifest; the folder is a gold set then.

    Files that are there already are not fetched again. Raises GoldError where a file is not as it was published.
    """
    bucket, prefix = _place(source)
    s3 = client or make_client(settings)
    number = _newest(s3, bucket, prefix)
    if not number:
        raise GoldError(f"s3://{bucket}/{prefix} holds no published gold set: no manifest below manifests/.")
    path = manifest_path(folder, number)
    content = _get(s3, bucket, prefix + path.relative_to(folder).as_posix())
    manifest = msgspec.json.decode(content, type=Manifest, strict=False)
    for file in manifest.files:
        _fetch(s3, bucket, prefix, file, folder)
    for extra in ("forgotten/keys.json",):
        _write(folder / extra, _get(s3, bucket, prefix + extra))
    _write(path, content)
    return manifest


def make_client(settings: Publish) -> Any:
    """Returns an S3 client; its credentials are those of the environment."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=settings.endpoint or None,
        region_name=settings.region or None,
        config=Config(retries={"max_attempts": 5, "mode": "standard"}, connect_timeout=10, read_timeout=60),
    )


def _place(url: str) -> tuple[str, str]:
    if not url:
        raise SettingsError('gold.publish.s3 is not set: name the bucket, such as s3 = "s3://bucket/prefix".')
    if not url.startswith("s3://"):
        raise SettingsError(f"{url!r} is no bucket; expected s3://BUCKET/PREFIX, as gold.publish.s3 or --from.")
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    prefix = prefix.strip("/")
    return bucket, prefix + "/" if prefix else ""


def _put(s3: Any, bucket: str, key: str, data: bytes, sha256: str) -> bool:
    """Puts an object where there is none; False where there is the same one. Raises Fenced where it differs."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        s3.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch=_ABSENT, Metadata={"sha256": sha256})
        return True
    except ClientError as error:
        code = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code not in (409, 412):
            raise _readable(error, bucket, key) from error
    except BotoCoreError as error:
        raise _readable(error, bucket, key) from error
    try:
        held = s3.head_object(Bucket=bucket, Key=key).get("Metadata", {}).get("sha256")
    except (ClientError, BotoCoreError) as error:
        raise _readable(error, bucket, key) from error
    if held != sha256:
        raise Fenced(
            f"s3://{bucket}/{key} is there already and is another file: another gold set publishes to this prefix. "
            "Give each a prefix of its own."
        )
    return False


def _get(s3: Any, bucket: str, key: str) -> bytes:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        data: bytes = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        return data
    except (ClientError, BotoCoreError) as error:
        raise _readable(error, bucket, key) from error


def _fetch(s3: Any, bucket: str, prefix: str, file: DataFile, folder: Path) -> None:
    target = folder / file.name
    if target.exists() and target.stat().st_size == file.bytes:
        return
    data = _get(s3, bucket, prefix + file.name)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise GoldError(f"s3://{bucket}/{prefix}{file.name} is not the file that was published: its SHA-256 differs.")
    _write(target, data)


def _write(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temp = target.with_name(target.name + ".part")
    temp.write_bytes(data)
    temp.replace(target)


def _newest(s3: Any, bucket: str, prefix: str) -> int:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        pages: Iterable[Any] = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}manifests/")
        stems = [Path(one["Key"]).stem for page in pages for one in page.get("Contents", ())]
    except (ClientError, BotoCoreError) as error:
        raise _readable(error, bucket, prefix) from error
    return max((int(stem) for stem in stems if len(stem) == _MANIFEST_DIGITS and stem.isdigit()), default=0)


def _readable(error: Exception, bucket: str, key: str) -> GoldError:
    return GoldError(
        f"s3://{bucket}/{key}: {error}. The bucket must exist, gold.publish.endpoint and region must be right, and the "
        "credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role) must allow it."
    )
