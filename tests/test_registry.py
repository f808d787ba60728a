"""Claims about the registry: versions are immutable, verified and never half there; who served when; what may go."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from safetensors.numpy import load_file, save_file
from tiny import make_tiny_model, write_manifest
from toys import NEW, OLD, a_manifest, a_report, files_of_at_most

from schemas.adapters import base_fingerprint, read_manifest, verify_adapter
from schemas.errors import AdapterError, Overtaken, SetupError
from trainer.lease import Fence, LeaseLost, lease
from trainer.registry import (
    Promotion,
    clear_leftovers,
    incumbent,
    list_adapters,
    next_version,
    promote,
    promotions,
    publish,
    read_gate,
    removed_adapters,
    rollback,
    served_before,
    write_gate,
)
from trainer.removal import finish_removals, removal_plan, remove

THIRD, FOURTH = "v0003-cccccc", "v0004-dddddd"
DAY_MS = 86_400_000


def test_a_version_is_never_overwritten(tmp_path: Path, base: Path, run_folder: Path) -> None:
    manifest = a_manifest(base, OLD)
    folder = publish(tmp_path, run_folder, manifest)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(AdapterError, match="never overwritten"):
        publish(tmp_path, run_folder, msgspec.structs.replace(manifest, rows=5))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    write_gate(tmp_path, a_report(OLD), "<p>why</p>")
    with pytest.raises(AdapterError, match="never rewritten"):
        write_gate(tmp_path, a_report(OLD, decision="refuse"), "<p>another</p>")
    assert read_gate(tmp_path, "toy", OLD) == a_report(OLD)
    assert (folder / "gate.html").read_text() == "<p>why</p>"
    assert verify_adapter(folder).rows == 4
    assert list((tmp_path / "toy/.tmp").iterdir()) == []


def test_only_the_adapters_own_files_are_published(tmp_path: Path, base: Path, run_folder: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    (run / "optimizer.pt").write_bytes(b"a pickle, of a checkpoint")
    (run / "checkpoint").mkdir()
    folder = publish(tmp_path / "registry", run, a_manifest(base, OLD))
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"} | {
        "manifest.json"
    }


def add_a_pickle(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")


def add_a_file(folder: Path) -> None:
    (folder / "more.json").write_text("{}")


def change_a_byte(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def lose_a_file(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def garble_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b'{"task": ')


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (add_a_pickle, "a pickle, which can run code"),
        (add_a_file, "are not those of its manifest"),
        (change_a_byte, "changed after it was written"),
        (lose_a_file, "are not those of its manifest"),
        (lose_the_manifest, "never finished"),
        (garble_the_manifest, "cannot be read"),
    ],
)
def test_a_harmed_adapter_is_refused_at_load_and_cannot_be_promoted(
    tmp_path: Path, base: Path, run_folder: Path, harm: Callable[[Path], None], said: str
) -> None:
    folder = publish(tmp_path, run_folder, a_manifest(base, OLD))
    assert verify_adapter(folder, base_fingerprint(base)).version == OLD
    harm(folder)
    with pytest.raises(AdapterError, match=said):
        verify_adapter(folder)
    with pytest.raises(AdapterError, match=said):
        promote(tmp_path, "toy", OLD, by="hand")
    assert promotions(tmp_path, "toy") == []


def test_weights_that_are_no_numbers_or_cut_short_are_refused_though_their_hash_is_right(
    tmp_path: Path, base: Path, run_folder: Path
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(run_folder, folder)
    path = folder / "adapter_model.safetensors"
    weights, whole = load_file(path), path.read_bytes()
    for value in (float("nan"), float("inf")):
        broken = {name: tensor.copy() for name, tensor in weights.items()}
        next(iter(broken.values()))[0] = value
        save_file(broken, path)
        write_manifest(folder, base, OLD)
        with pytest.raises(AdapterError, match="NaN or infinite"):
            verify_adapter(folder)
    for data, said in ((whole[:-100], "cut short"), (b"not safetensors", "no safetensors file")):
        path.write_bytes(data)
        write_manifest(folder, base, OLD)
        with pytest.raises(AdapterError, match=said):
            verify_adapter(folder)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, base: Path, run_folder: Path) -> None:
    folder = publish(tmp_path, run_folder, a_manifest(base, OLD))
    other = base_fingerprint(make_tiny_model(tmp_path / "other", seed=7))
    with pytest.raises(AdapterError, match=r"another base.*Train a new adapter"):
        verify_adapter(folder, other)
    with pytest.raises(AdapterError, match="another base"):
        promote(tmp_path, "toy", OLD, by="hand", base_sha256=other)


def test_an_adapter_with_nan_weights_is_never_visible(tmp_path: Path, base: Path, run_folder: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    weights = load_file(run / "adapter_model.safetensors")
    next(iter(weights.values()))[0] = float("nan")
    save_file(weights, run / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="NaN"):
        publish(tmp_path / "registry", run, a_manifest(base, OLD))
    assert list_adapters(tmp_path / "registry", "toy") == []


def test_a_disk_without_room_leaves_nothing_half_written_and_says_what_to_do(
    tmp_path: Path, base: Path, run_folder: Path
) -> None:
    publish(tmp_path, run_folder, a_manifest(base, OLD))
    promote(tmp_path, "toy", OLD, by="gate")
    with files_of_at_most(10_000), pytest.raises(SetupError, match=r"incumbent keeps serving.*adapters gc"):
        publish(tmp_path, run_folder, a_manifest(base, NEW))
    with files_of_at_most(0):
        for write in (
            lambda: promote(tmp_path, "toy", "", by="hand"),
            lambda: write_gate(tmp_path, a_report(OLD), "<p>why</p>"),
        ):
            with pytest.raises(SetupError, match="could not be written to"):
                write()
    assert [manifest.version for manifest in list_adapters(tmp_path, "toy")] == [OLD]
    assert (incumbent(tmp_path, "toy"), read_gate(tmp_path, "toy", OLD)) == (OLD, None)
    assert list((tmp_path / "toy/.tmp").iterdir()) == []
    publish(tmp_path, run_folder, a_manifest(base, NEW))


def test_leftovers_of_a_killed_publish_are_no_adapter_and_are_removed_later(
    tmp_path: Path, base: Path, run_folder: Path
) -> None:
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


# Who serves


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


def test_a_promotion_that_rests_on_an_older_log_does_not_overrule_what_came_since(
    tmp_path: Path, base: Path, run_folder: Path
) -> None:
    for version in (OLD, NEW):
        publish(tmp_path, run_folder, a_manifest(base, version))
    promote(tmp_path, "toy", NEW, by="gate", after=0)
    promote(tmp_path, "toy", "", by="hand")  # between the guard's look at the log and its decision
    with pytest.raises(Overtaken, match="promoted meanwhile"):
        promote(tmp_path, "toy", OLD, by="guard", after=1)
    assert incumbent(tmp_path, "toy") == ""


@pytest.mark.parametrize(
    ("log", "before"),
    [
        ([], []),
        ([""], []),
        (["1"], [""]),
        (["1", "2", "3"], ["2", "1", ""]),
        (["1", "2", "3", "2"], ["1", ""]),  # taken back: 3 is nothing to go back to
        (["1", "2", "1", "3"], ["1", ""]),
        (["1", "2", ""], []),
        (["1", "2", "1", "2"], ["1", ""]),
    ],
)
def test_what_served_before_forgets_what_was_taken_back(log: list[str], before: list[str]) -> None:
    entries = [Promotion(task="toy", version=version, by="hand", at_ms=1) for version in log]
    assert served_before(entries) == before


def test_a_rollback_goes_to_what_served_before_and_passes_over_what_cannot_be_loaded(
    tmp_path: Path, base: Path, run_folder: Path
) -> None:
    for version in (OLD, NEW, THIRD, FOURTH):
        publish(tmp_path, run_folder, a_manifest(base, version))
        promote(tmp_path, "toy", version, by="gate")
    entry, passed_over = rollback(tmp_path, "toy", by="guard", reason="a live drop")
    assert (entry.version, entry.by, entry.reason, passed_over) == (THIRD, "guard", "a live drop", [])
    change_a_byte(tmp_path / "toy" / NEW)
    entry, passed_over = rollback(tmp_path, "toy", by="hand", reason="again")
    assert entry.version == OLD
    assert [text.partition(":")[0] for text in passed_over] == [NEW]
    assert rollback(tmp_path, "toy", by="hand", reason="and again")[0].version == ""
    with pytest.raises(AdapterError, match="nothing of toy served before"):
        rollback(tmp_path, "toy", by="hand", reason="no more")


def test_versions_keep_counting_over_bases_and_each_base_is_a_line_of_its_own(
    tmp_path: Path, base: Path, run_folder: Path
) -> None:
    publish(tmp_path, run_folder, a_manifest(base, OLD))
    publish(tmp_path, run_folder, a_manifest(base, NEW, base_sha256="f" * 64))
    assert [m.version for m in list_adapters(tmp_path, "toy")] == [OLD, NEW]
    assert [m.version for m in list_adapters(tmp_path, "toy", "f" * 64)] == [NEW]
    assert next_version(tmp_path, "toy", "cccccc") == THIRD


# Removal


def published(registry: Path, base: Path, run_folder: Path, *promoted: str, created_ms: int = 1) -> None:
    for version in (OLD, NEW, THIRD, FOURTH):
        publish(registry, run_folder, a_manifest(base, version, created_ms=created_ms))
        write_gate(registry, a_report(version, decision="promote" if version in promoted else "refuse"), "texts")
        if version in promoted:
            promote(registry, "toy", version, by="gate")


def test_what_serves_was_served_lately_waits_or_is_newest_stays(tmp_path: Path, base: Path, run_folder: Path) -> None:
    published(tmp_path, base, run_folder, OLD, NEW)
    later = int(time.time() * 1000) + 2 * DAY_MS

    def stays(now_ms: int = later, keep: int = 1, served: set[str] | None = None) -> dict[str, str]:
        plan = removal_plan(tmp_path, "toy", keep=keep, grace_s=86400, served=served or set(), now_ms=now_ms)
        return {one.manifest.version: one.kept for one in plan if one.kept}

    assert stays() == {NEW: "should serve now", FOURTH: "the newest of its base"}
    assert stays(keep=2)[OLD] == "one of the last 2 promoted"
    assert stays(served={OLD})[OLD] == "named by the serving record"
    assert stays(now_ms=later - 2 * DAY_MS)[OLD] == "promoted or replaced within the grace period"
    promote(tmp_path, "toy", "", by="hand")
    assert stays(now_ms=later)[NEW] == "one of the last 1 promoted"
    publish(tmp_path, run_folder, a_manifest(base, "v0005-eeeeee"))
    assert FOURTH not in stays()


def test_a_candidate_that_waits_for_a_gate_or_a_person_stays(tmp_path: Path, base: Path, run_folder: Path) -> None:
    for version in (OLD, NEW, THIRD):
        publish(tmp_path, run_folder, a_manifest(base, version))
    write_gate(tmp_path, a_report(OLD))
    plan = removal_plan(tmp_path, "toy", keep=1, grace_s=0, served=(), now_ms=int(time.time() * 1000))
    assert [one.kept for one in plan] == [
        "passed the gate and waits for a promotion",
        "not gated yet",
        "the newest of its base",
    ]


def test_a_removed_version_keeps_its_number_and_figures_and_loses_weights_and_texts(
    tmp_path: Path, base: Path, run_folder: Path
) -> None:
    published(tmp_path, base, run_folder, NEW)
    size = sum(path.stat().st_size for path in (tmp_path / "toy" / FOURTH).iterdir())
    freed = remove(tmp_path, "toy", FOURTH)
    assert size / 2 < freed < size
    assert [manifest.version for manifest in list_adapters(tmp_path, "toy")] == [OLD, NEW, THIRD]
    assert [manifest.version for manifest in removed_adapters(tmp_path, "toy")] == [FOURTH]
    gate = read_gate(tmp_path, "toy", FOURTH)
    assert gate is not None
    assert gate.decision == "refuse"
    assert {path.name for path in (tmp_path / "toy/removed" / FOURTH).iterdir()} == {"manifest.json", "gate.json"}
    assert next_version(tmp_path, "toy", "eeeeee") == "v0005-eeeeee"
    with pytest.raises(AdapterError, match="should serve toy now"):
        remove(tmp_path, "toy", NEW)


def test_a_removal_that_was_killed_half_way_is_finished_by_the_next(
    tmp_path: Path, base: Path, run_folder: Path
) -> None:
    published(tmp_path, base, run_folder, NEW)
    (tmp_path / "toy/removed").mkdir()
    (tmp_path / "toy" / OLD).rename(tmp_path / "toy/removed" / OLD)
    assert finish_removals(tmp_path, "toy") > 0
    assert {path.name for path in (tmp_path / "toy/removed" / OLD).iterdir()} == {"manifest.json", "gate.json"}


# Lease


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


def test_an_owner_whose_lease_was_taken_over_publishes_nothing(tmp_path: Path, base: Path, run_folder: Path) -> None:
    path, stop = tmp_path / "toy/lease", threading.Event()
    with lease(path, stop) as first:
        assert first is not None
        fence = Fence(path, first)
        fence.check()
        path.unlink()  # somebody tidies up
        with pytest.raises(LeaseLost, match="is gone"):
            fence.check()
        with lease(path, stop, wait=False) as second:
            assert second is not None
            later = Fence(path, second)
            with pytest.raises(LeaseLost, match="another trainer has taken over"):
                publish(tmp_path, run_folder, a_manifest(base, OLD), still_owner=fence.check)
            later.check()
    assert list_adapters(tmp_path, "toy") == []


def test_each_owner_of_a_lease_has_a_higher_number(tmp_path: Path) -> None:
    epochs = []
    for _ in range(3):
        with lease(tmp_path / "lease", threading.Event()) as held:
            assert held is not None
            epochs.append(Fence(tmp_path / "lease", held).epoch)
    assert epochs == [1, 2, 3]


def test_manifests_survive_the_trip_through_json(tmp_path: Path, base: Path, run_folder: Path) -> None:
    folder = publish(tmp_path, run_folder, a_manifest(base, OLD, watermark={0: 3, 11: 5}))
    assert read_manifest(folder).watermark == {0: 3, 11: 5}
