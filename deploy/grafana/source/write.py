"""Writes deploy/grafana/dashboards from the modules beside this one: `make dashboards`. With --check only compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cost import cost
from funnel import funnel
from lag import lag
from training import training

FOLDER = Path(__file__).parents[1] / "dashboards"


def main() -> None:
    stale = []
    for made in (lag(), funnel(), cost(), training()):
        path = FOLDER / f"{made.uid}.json"
        text = json.dumps(made.as_json(), indent=2, ensure_ascii=False) + "\n"
        if not path.exists() or path.read_text("utf-8") != text:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(text, "utf-8")
    if stale:
        print(("written: ", "not as the source says: ")["--check" in sys.argv] + ", ".join(stale))
    sys.exit(bool(stale and "--check" in sys.argv))


if __name__ == "__main__":
    main()
