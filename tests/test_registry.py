"""Claims about the registry: versions are immutable, verified and never half there; who served when."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import msgspec
import pytest
from toys import NEW, OLD, a_manifest, a_report

from schemas.adapters import verify_adapter
from schemas.errors import AdapterError
from trainer.lease import lease
from trainer.registry import (
    clear_leftovers,
    incumbent,
    list_adapters,
    next_version,
    promote,
    promotions,
    publish,
    read_gate,
    write_gate,
)


def test_a_version_is_never_overwritten(tmp_path: Path, base: Path, run_folder: Path) -> None:
    manifest = a_manifest(base, OLD)
    folder = publish(tmp_path, run_folder, manifest)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(AdapterError, match="never overwritten"):
        publish(tmp_path, run_folder, msgspec.structs.replace(manifest, rows=5))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    write_gate(tmp_path, a_report(OLD))
    with pytest.raises(AdapterError, match="never rewritten"):
        write_gate(tmp_path, a_report(OLD, decision="refuse"))
    assert read_gate(tmp_path, "toy", OLD) == a_report(OLD)
    assert verify_adapter(folder).rows == 4
    assert list((tmp_path / "toy/.tmp").iterdir()) == []


def test_leftovers_of_a_killed_publish_are_no_adapter_and_are_removed_later(
    tmp_path: Path, base: Path, run_folder: Path
) -> None:
    import os

    publish(tmp_path, run_folder, a_manifest(base, OLD))
    half = tmp_path / "toy/.tmp/v0002-cccccc-123"
    half.mkdir()
    (half / "adapter_model.safetensors").write_bytes(b"half")
    (tmp_path / "toy/v0003-dddddd").mkdir()  # no manifest: no adapter, but its number is taken
    assert [manifest.version for manifest in list_adapters(tmp_path, "toy")] == [OLD]
    assert next_version(tmp_path, "toy", "eeeeee") == "v0004-eeeeee"
    clear_leftovers(tmp_path, "toy")
    assert half.exists()  # young: its process may be alive
    os.utime(half, (0, 0))
    clear_leftovers(tmp_path, "toy")
    assert not half.exists()


def test_an_adapter_with_nan_weights_is_never_visible(tmp_path: Path, base: Path, run_folder: Path) -> None:
    import shutil

    from safetensors.numpy import load_file, save_file

    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    weights = load_file(run / "adapter_model.safetensors")
    next(iter(weights.values()))[0] = float("nan")
    save_file(weights, run / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="NaN"):
        publish(tmp_path / "registry", run, a_manifest(base, OLD))
    assert list_adapters(tmp_path / "registry", "toy") == []


def test_the_last_promotion_says_who_serves_and_going_back_is_one_more(
    tmp_path: Path, base: Path, run_folder: Path
) -> None:
    assert incumbent(tmp_path, "toy") == ""
    for version in (OLD, NEW):
        publish(tmp_path, run_folder, a_manifest(base, version))
        promote(tmp_path, "toy", version, by="gate")
    promote(tmp_path, "toy", OLD, by="hand", reason="complaints")
    assert incumbent(tmp_path, "toy") == OLD
    promote(tmp_path, "toy", "", by="hand")
    assert [entry.version for entry in promotions(tmp_path, "toy")] == [OLD, NEW, OLD, ""]
    with pytest.raises(AdapterError, match="has no manifest"):
        promote(tmp_path, "toy", "v0009-ffffff", by="hand")


def test_a_second_owner_waits_for_the_lease(tmp_path: Path) -> None:
    stop, order = threading.Event(), []

    def second() -> None:
        with lease(tmp_path / "lease", stop) as held:
            order.append(("second", held is not None))

    with lease(tmp_path / "lease", stop) as held:
        assert held is not None
        with lease(tmp_path / "lease", stop, wait=False) as other:
            assert other is None
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append(("first", True))
    thread.join()
    assert order == [("first", True), ("second", True)]
