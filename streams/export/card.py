"""The dataset card: README.md as the Hugging Face hub and `datasets` read it. It holds no clock time: one watermark and
one choice give one card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from schemas.settings import Settings
from streams.export.formats import FORMATS, Name
from streams.export.pairs import LEFT_OUT, Choice, Selection
from streams.watermarks import to_json

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def card(
    settings: Settings,
    choice: Choice,
    name: Name,
    title: str,
    selection: Selection,
    files: dict[str, list[str]],
    watermark: dict[int, int],
) -> str:
    """Returns the card of an export; `files` are those of each split."""
    made = sum(selection.made.values())
    form = FORMATS[name]
    sections = [
        _front(title, made, files),
        f"# {title}",
        _counts(choice, selection),
        f"## Use\n\n{form.use.format(path='.', name=dataset_name(title, 'train'))}",
        _made(choice, selection, form.thinking if choice.pairs == "rgt" else ""),
        _personal(settings, selection),
        "## Licence\n\nYours to choose: add `license:` above before you share this. The prompts are your product's, "
        "the answers came from the models below, whose terms may limit what they may train.",
        _provenance(selection, watermark),
    ]
    return "\n\n".join(sections) + "\n"


def dataset_name(title: str, split: str) -> str:
    """Returns what LLaMA-Factory's settings call a split."""
    return title.replace(" ", "-") if split == "train" else f"{title.replace(' ', '-')}-{split}"


def _front(title: str, made: int, files: dict[str, list[str]]) -> str:
    size = next((label for limit, label in _SIZES if made < limit), "1M<n<10M")
    lines = ["---", f"pretty_name: {msgspec.json.encode(title).decode()}", "task_categories:", "- text-generation"]
    lines += ["tags:", "- goldstream", "size_categories:", f"- {size}", "configs:", "- config_name: default"]
    lines += ["  data_files:"]
    for split, paths in sorted(files.items(), reverse=True):
        lines += [f"  - split: {split}", "    path:", *(f"    - {path}" for path in paths)]
    return "\n".join([*lines, "---"])


def _counts(choice: Choice, selection: Selection) -> str:
    rows = [("split", "cases"), *sorted(((s, str(n)) for s, n in selection.cases.items()), reverse=True)]
    told = [_table(rows)]
    pairs = [("pair", "rows"), *((pair, str(n)) for pair, n in sorted(selection.made.items()))]
    told.append(_table(pairs))
    left_out = [("left out", "rows", "because")]
    left_out += [(reason, str(n), LEFT_OUT[reason]) for reason, n in sorted(selection.left_out.items())]
    told.append(_table(left_out) if len(left_out) > 1 else "No row was left out.")
    limits = {
        "task": choice.task,
        "where": choice.where,
        "since": choice.since,
        "until": choice.until,
        "with holdout": choice.with_holdout,
        "with contaminated": choice.with_contaminated,
    }
    chosen = "; ".join(f"{label}: {_code(value)}" for label, value in limits.items() if value)
    told.append(f"Chosen by {chosen}." if chosen else "Chosen: all gold.")
    return "\n\n".join(told)


def _made(choice: Choice, selection: Selection, thinking: str) -> str:
    seen = selection.seen
    corrected = seen["corrected"]["True"]
    told = [
        "## How it was made",
        "Each prompt comes from a product's log. A student model attempted it, or the product's answer "
        "was the attempt; a judge named the rules the attempt broke and where, a refiner rewrote it until the judge "
        "accepted. The accepted answer is the one here: "
        f"{corrected} of {sum(selection.cases.values())} cases needed a correction, the others passed at once.",
        "Pair A is prompt and answer. "
        + (
            "Pair B is prompt, strategy and answer: what a strategist distilled from the judge's objections, as a "
            f"mistake and a guardrail. It stands in {thinking}. A case that passed at once has no pair B."
            if thinking
            else "Strategies were left out (`--pairs sft`)."
        ),
        _table([("task", "cases"), *_lines(seen["task"])]),
        _table([("rubric version", "cases"), *_lines(seen["rubric"])])
        + "\n\n`goldstream judge rubrics` shows what a version says."
        if seen["rubric"]
        else "The judges named no rubric version.",
        _table([("accepted by", "cases"), *_lines(seen["accepted_by"])]),
        _table([("kind of judge", "cases"), *_lines(seen["accepted_kind"])]),
    ]
    return "\n\n".join(told)


def _personal(settings: Settings, selection: Selection) -> str:
    lines = [
        "## Personal data",
        "Values of these kinds are taken out before anything is written, and placeholders stand for them. The settings "
        "are those of this export; a case admitted under others keeps what they left.",
    ]
    kinds = [("task", "kinds taken out")]
    for task in sorted(selection.seen["task"]):
        known = settings.tasks.get(task)
        kinds.append((task, ", ".join(known.redact.kinds) or "none" if known else "not in the settings now"))
    found = [("placeholder", "cases with one"), *_lines(selection.seen["placeholders"])]
    lines += [_table(kinds), _table(found) if len(found) > 1 else "No case of these holds a placeholder."]
    return "\n\n".join(lines)


def _provenance(selection: Selection, watermark: dict[int, int]) -> str:
    models = [("model that wrote an accepted answer", "cases"), *_lines(selection.seen["answered_by"])]
    return (
        f"## Provenance\n\n{_table(models)}\n\nWatermark of the gold set: `{to_json(watermark)}`. The same watermark "
        "and choice give the same bytes; `export.json` holds the SHA-256 of each file and can be given as `--as-of`."
    )


def _lines(counter: Counter[str]) -> list[tuple[str, str]]:
    return [(name, str(n)) for name, n in sorted(counter.items(), key=lambda item: (-item[1], item[0]))]


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    head, *body = [" | ".join(_cell(cell) for cell in row) for row in rows]
    rule = " | ".join("---" for _ in rows[0])
    return "\n".join(f"| {line} |" for line in (head, rule, *body))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _code(value: object) -> str:
    return "yes" if value is True else f"`{value}`".replace("\n", " ")
