"""A headless Chromium for tests of the dashboard's page, and what a page did wrong while a test looked at it.

The browser is Debian's, or whatever CHROMIUM names; playwright's own downloads are never used. It belongs to the test
that opened it and ends with it, also when the test fails.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

UNPACKED = Path(__file__).parent.parent / ".goldstream" / "chromium"
MISSING = "no Chromium: `make chromium`, or set CHROMIUM=/path/to/chromium"
PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1440, "height": 900}


def find_chromium() -> str | None:
    """Returns the path of a Chromium: CHROMIUM, one that is installed, or the one `make chromium` has unpacked."""
    if named := os.environ.get("CHROMIUM"):
        return named
    unpacked = UNPACKED / "usr/lib/chromium/chromium"
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    return found or (str(unpacked) if unpacked.exists() else None)


@contextmanager
def chromium() -> Iterator[Any]:
    """Gives a running browser, and ends it."""
    from playwright.sync_api import sync_playwright

    path = find_chromium()
    assert path is not None, MISSING
    libraries = [str(UNPACKED / "usr/lib"), *map(str, UNPACKED.glob("usr/lib/*-linux-gnu*"))]
    env = os.environ | ({"LD_LIBRARY_PATH": ":".join(libraries)} if path.startswith(str(UNPACKED)) else {})
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # its sandbox refuses to run as root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments, env=env)
        try:
            yield browser
        finally:
            browser.close()


class Watch:
    """What went wrong on a page: errors on its console, exceptions, requests to other hosts."""

    def __init__(self, page: Any, url: str) -> None:
        self.wrong: list[str] = []
        self.expected: list[str] = []  # parts of console lines that the test provokes
        self._host = urlsplit(url).netloc
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.wrong.append(f"exception: {error}"))
        page.on("request", self._request)
        page.on("dialog", self._dialog)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(f"console {message.type}: {message.text}")

    def _request(self, request: Any) -> None:
        at = urlsplit(request.url)
        if at.scheme not in ("data", "blob", "about") and at.netloc != self._host:
            self.wrong.append(f"request to another host: {request.url}")

    def _dialog(self, dialog: Any) -> None:
        self.wrong.append(f"alert: {dialog.message}")
        dialog.dismiss()

    def left(self) -> list[str]:
        """Returns what went wrong and was not expected."""
        return [line for line in self.wrong if not any(part in line for part in self.expected)]


def new_page(browser: Any, url: str, size: dict[str, int], theme: str) -> Any:
    """Returns a page in a context of its own, with what goes wrong on it as `watch`."""
    page = browser.new_context(viewport=size, color_scheme=theme).new_page()
    page.set_default_timeout(20_000)
    page.watch = Watch(page, url)
    return page


def go_to(page: Any, address: str) -> Any:
    """Opens the dashboard on a page and returns that once all of it is drawn."""
    page.goto(address)
    page.wait_for_selector("#flow-drawing svg")
    page.wait_for_selector("#case-list > :not(p.hint)")
    page.wait_for_selector("#review-panel > :not(p.hint)")
    return page


# Every text's contrast with what lies behind it, by WCAG 2: [ratio, needed, text]. Run in the page.
CONTRASTS = """(root) => {
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    paint.clearRect(0, 0, 1, 1);
    paint.fillStyle = "#000";
    paint.fillStyle = color;
    paint.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = paint.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, under) => top.slice(0, 3).map((c, i) => c * top[3] + under[i] * (1 - top[3]));
  const luminance = (c) => c.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    const layers = [];
    const svg = element.closest("svg");
    const shape = svg && element.tagName === "text" && element.parentElement.querySelector(":scope > rect");
    if (shape && shape.getBoundingClientRect().height > 14) layers.push(rgba(getComputedStyle(shape).fill));
    for (let at = svg ? svg.parentElement : element; at; at = at.parentElement) {
      const color = rgba(getComputedStyle(at).backgroundColor);
      if (color[3]) layers.push(color);
      if (color[3] === 1) break;
    }
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const found = [];
  for (const element of document.querySelector(root).querySelectorAll("*")) {
    const own = [...element.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data.trim()).join(" ").trim();
    const unseen = element.closest(".unseen, option, style, script, title, noscript, .skip");
    if (!own || unseen || !element.checkVisibility()) continue;
    const style = getComputedStyle(element), size = parseFloat(style.fontSize);
    const ground = behind(element), color = rgba(element.closest("svg") ? style.fill : style.color);
    const [high, low] = [luminance(over(color, ground)), luminance(ground)].sort((a, b) => b - a);
    const needed = size >= 24 || (size >= 18.66 && parseInt(style.fontWeight) >= 700) ? 3 : 4.5;
    const name = `${element.tagName}.${element.getAttribute("class") ?? ""}: ${own.slice(0, 60)}`;
    found.push([(high + 0.05) / (low + 0.05), needed, name]);
  }
  return found;
}"""
