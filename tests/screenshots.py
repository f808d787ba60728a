"""`make screenshots`: pictures of every section of the dashboard, on a phone and a desktop, light and dark.

Shows a factory made for it, or with URL=http://127.0.0.1:PORT/#token=... one that runs.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from browser import DESKTOP, MISSING, PHONE, chromium, find_chromium
from tiny import make_tiny_adapter, make_tiny_model
from worked_factory import Dashboard, Factory

from schemas.settings import load_settings
from streams.broker import start_broker, stop_broker

SECTIONS = ("flow", "quality", "cost", "training", "review", "dead", "cases")
SHEETS = {
    "story": "#case-list button.link",
    "reviewing": "#start-review",
    "question": "#dead-panel button:has-text('Redrive')",
    "report": "#adapters button:has-text('Report')",
}


@contextmanager
def worked() -> Iterator[str]:
    """Gives the address of a dashboard in front of a factory that has worked."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        settings = load_settings(None, [f"state_dir={folder / 'broker'}"], environ={})
        status = start_broker(settings)
        try:
            base = make_tiny_model(folder / "tiny")
            run_folder = make_tiny_adapter(folder / "run", base)
            (run_folder / "manifest.json").unlink()
            factory = Factory(folder, status.bootstrap_servers, "gs.", base)
            factory.work(base, run_folder)
            with Dashboard(factory) as dashboard:
                yield f"{dashboard.url}/#token={dashboard.token}"
        finally:
            stop_broker(settings)


def photograph(browser: Any, address: str, folder: Path) -> None:
    """Writes <device>-<theme>-<section>.png for the whole page, every section and every sheet."""
    for device, size in (("phone", PHONE), ("desktop", DESKTOP)):
        for theme in ("light", "dark"):
            context = browser.new_context(viewport=size, color_scheme=theme, reduced_motion="reduce")
            page = context.new_page()
            page.goto(address)
            page.wait_for_selector("#flow-drawing svg")
            page.wait_for_selector("#case-list > :not(p.hint)")
            page.wait_for_timeout(3000)  # the second reading, without which there are no rates
            name = f"{device}-{theme}"
            page.screenshot(path=folder / f"{name}-top.png")
            page.screenshot(path=folder / f"{name}-page.png", full_page=True)
            for section in SECTIONS:
                box = page.locator(f"#{section}").bounding_box()
                box["y"] += page.evaluate("scrollY")
                page.screenshot(path=folder / f"{name}-{section}.png", full_page=True, clip=box)
            for sheet, opener in SHEETS.items():
                if page.locator(opener).count():
                    page.locator(opener).first.click()
                    page.wait_for_selector(f"#{sheet}[open]")
                    page.wait_for_timeout(300)
                    page.screenshot(path=folder / f"{name}-{sheet}.png")
                    page.locator(f"#{sheet}").evaluate("(dialog) => dialog.close()")
            context.close()


def main() -> None:
    """Takes the pictures."""
    if find_chromium() is None:
        raise SystemExit(f"error: {MISSING}")
    folder = Path(__file__).parent.parent / ".goldstream" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        if sys.argv[1:]:
            photograph(browser, sys.argv[1], folder)
        else:
            with worked() as address:
                photograph(browser, address, folder)
    print(f"{len(list(folder.glob('*.png')))} pictures in {folder}")


if __name__ == "__main__":
    main()
