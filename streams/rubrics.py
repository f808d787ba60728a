"""Rubric versions: their texts, kept once each in state/rubrics, and what was judged by them.

Every process that judges or writes rows keeps the texts of its settings when it starts, so that the hash in a row can
be looked up.
"""

from __future__ import annotations

from typing import Any

from schemas.errors import SettingsError
from schemas.settings import Settings
from schemas.settings.rubric_file import keep_rubric, kept_path
from streams.gold import open_gold


def keep_rubrics(settings: Settings) -> None:
    """Keeps the texts of all tasks' rubrics by their versions."""
    for task in settings.tasks.values():
        keep_rubric(settings.state, task.rubric)


def rubric_text(settings: Settings, version: str) -> str:
    """Returns a version's TOML; raises SettingsError where it was never kept here."""
    path = kept_path(settings.state, version)
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise SettingsError(
            f"the text of rubric {version} is not in {path.parent}: it was judged by on another machine, or before "
            "texts were kept. `goldstream judge rubrics` lists what is known."
        ) from None


def known_rubrics(settings: Settings) -> list[dict[str, Any]]:
    """Returns each version that attempts were judged by or that is set now, with what was judged and when."""
    with open_gold(settings.gold) as connection:
        result = connection.execute(_JUDGED)
        names = [column[0] for column in result.description or []]
        found = [dict(zip(names, row, strict=True)) for row in result.fetchall()]
    now = {(name, task.rubric.version()) for name, task in settings.tasks.items()}
    seen = {(row["task"], row["rubric"]) for row in found}
    unused = [{"task": task, "rubric": version, "attempts": 0, "passed": 0} for task, version in sorted(now - seen)]
    for row in (*found, *unused):
        row["in_use"] = (row["task"], row["rubric"]) in now
        row["text_kept"] = kept_path(settings.state, row["rubric"]).exists()
    return [*found, *unused]


_JUDGED = """
SELECT task, attempt.rubric AS rubric, count(*) AS attempts, count(*) FILTER (attempt.passed) AS passed,
       min(ended_at) AS first, max(ended_at) AS last
FROM (SELECT task, ended_at, unnest(attempts) AS attempt FROM outcomes)
WHERE regexp_full_match(attempt.rubric, '[0-9a-f]{12}')
GROUP BY ALL
ORDER BY task, last DESC
"""
