"""An export as a folder: data files, card and export.json, all of it or nothing under its name."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

import msgspec

from schemas.adapters import file_sha256
from schemas.errors import GoldError
from schemas.gold import Watermark, current_watermark
from schemas.settings import Settings
from streams.export.card import card, dataset_name
from streams.export.formats import FORMATS, Format, Name
from streams.export.json_lines import JsonLines
from streams.export.llama_factory import INFO, dataset_info
from streams.export.pairs import LEFT_OUT, Choice, LeftOut, Selection
from streams.export.tables import TableFile
from streams.gold import open_gold

RECORD = "export.json"
_PART = 100_000  # pairs of one part


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What an export holds: export.json, and what the command prints."""

    format: str
    choice: Choice
    watermark: dict[str, int]
    cases: dict[str, int]  # by split
    pairs: dict[str, int]  # A and B
    left_out: dict[str, int]
    files: dict[str, str]  # SHA-256


def export_gold(
    settings: Settings, name: Name, out: Path, choice: Choice, as_of: Watermark | None = None, *, force: bool = False
) -> Exported:
    """Writes the pairs that a choice takes into the folder `out` and returns what it holds.

    1. pin the watermark, so that the counts and rows of one export fit while the sink writes;
    2. write the data files into a folder beside `out` that carries another name;
    3. write the card and export.json, and sync everything;
    4. rename it to `out`. A folder there is only ever replaced with `force`, and only where it is an export.

    Raises GoldError where nothing is left to export, and where `out` is taken.
    """
    target = out.absolute()
    _refuse_taken(target, force)
    watermark = as_of if as_of is not None else current_watermark(settings.gold)  # 1
    title = target.name
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.mkdir()
    try:
        with open_gold(settings.gold, watermark) as connection:
            selection = Selection(settings, connection, choice)
            files = _write_pairs(temporary, FORMATS[name], selection)  # 2
        if not selection.made:
            raise _nothing(choice, selection)
        if name == "llama-factory":
            names = {dataset_name(title, split): paths[0] for split, paths in files.items()}
            _write(temporary / INFO, msgspec.json.format(msgspec.json.encode(dataset_info(names))))
        text = card(settings, choice, name, title, selection, files, watermark)  # 3
        _write(temporary / "README.md", text.encode())
        exported = Exported(
            format=name,
            choice=choice,
            watermark={str(partition): offset for partition, offset in sorted(watermark.items())},
            cases=dict(sorted(selection.cases.items())),
            pairs=dict(sorted(selection.made.items())),
            left_out=dict(sorted(selection.left_out.items())),
            files={str(p.relative_to(temporary)): file_sha256(p) for p in _all_files(temporary)},
        )
        _write(temporary / RECORD, msgspec.json.format(msgspec.json.encode(exported)))
        _sync(temporary)
        _put_in_place(temporary, target, force)  # 4
        return exported
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_pairs(folder: Path, form: Format, selection: Selection) -> dict[str, list[str]]:
    """Writes every pair and returns the files of each split."""
    tools, thinking = selection.uses_tools(), selection.choice.pairs == "rgt"
    open_files: dict[str, JsonLines | TableFile] = {}
    files: dict[str, list[str]] = {}
    written: dict[str, int] = {}
    try:
        for pairs in selection.pairs():
            split = pairs[0].split
            try:
                rows = [form.line(pair, tools=tools, thinking=thinking) for pair in pairs]
            except LeftOut as reason:
                selection.left_out[str(reason)] += 1
                continue
            if split not in open_files or ("{n" in form.file and written[split] >= _PART):
                if split in open_files:
                    open_files.pop(split).close()
                path = form.file.format(split=split, n=len(files.get(split, [])))
                files.setdefault(split, []).append(path)
                written[split] = 0
                open_files[split] = _open(folder / path)
            for row in rows:
                open_files[split].add(row)
            written[split] += len(rows)
            selection.count(pairs)
    finally:
        for file in open_files.values():
            file.close()
    return files


def _open(path: Path) -> JsonLines | TableFile:
    path.parent.mkdir(exist_ok=True)
    return TableFile(path) if path.suffix == ".parquet" else JsonLines(path)


def _refuse_taken(target: Path, force: bool) -> None:
    if not os.path.lexists(target):
        return
    if target.is_dir() and not target.is_symlink():
        if not any(target.iterdir()):
            return
        if (target / RECORD).is_file():
            if force:
                return
            raise GoldError(f"{target} holds an export already; name another folder, or replace it with --force.")
    raise GoldError(
        f"{target} exists and is no export of ours, so it is not replaced, not even with --force. Name another folder."
    )


def _put_in_place(temporary: Path, target: Path, force: bool) -> None:
    """Renames a finished export into place; a folder that was there goes aside first and is removed last."""
    _refuse_taken(target, force)
    old = target.with_name(f"{temporary.name}.old")
    replaced = (target / RECORD).is_file()
    if replaced:
        target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        if replaced:
            old.rename(target)
        raise
    _sync_folder(target.parent)
    if replaced:
        shutil.rmtree(old, ignore_errors=True)


def _nothing(choice: Choice, selection: Selection) -> GoldError:
    left_out = ", ".join(f"{n} {reason} ({LEFT_OUT[reason]})" for reason, n in selection.left_out.items())
    return GoldError(
        f"nothing to export: {left_out or 'no gold row fits the choice'}. `goldstream gold stats` counts the rows; "
        "--task, --where, --since and --until limit them."
    )


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _all_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sync(folder: Path) -> None:
    for path in _all_files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        _sync_folder(path)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
