"""The real Prometheus in tests: where it is, promtool on our files, and a server of the test's own.

`make prometheus` unpacks Debian's package; PROMETHEUS=/path/to/prometheus names another, with promtool beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
UNPACKED = ROOT / ".goldstream" / "prometheus" / "usr" / "bin" / "prometheus"
METRIC = re.compile(r"\bgoldstream_[a-z0-9_]+(?:\{[^}]*\})?|\bup(?:\{[^}]*\})?(?=\s|\)|$)")


def find(name: str = "prometheus") -> Path | None:
    """Returns prometheus or promtool: beside what PROMETHEUS names, on the path, or what `make prometheus` unpacked."""
    told = os.environ.get("PROMETHEUS") or shutil.which("prometheus") or UNPACKED
    path = Path(told).with_name(name)
    return path if path.is_file() else None


needed = pytest.mark.skipif(
    find() is None or find("promtool") is None,
    reason="no Prometheus: `make prometheus` unpacks Debian's package; elsewhere set PROMETHEUS=/path/to/prometheus",
)


def promtool(*words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Runs promtool."""
    return subprocess.run([str(find("promtool")), *map(str, words)], input=stdin, capture_output=True, text=True)


def selectors(expression: str) -> list[str]:
    """Returns the series an expression asks for, each as a selector of its own."""
    return METRIC.findall(expression)


class Prometheus:
    """A running server. `root` is its address."""

    def __init__(self, root: str) -> None:
        self.root = root

    def get(self, path: str, **parameters: str) -> Any:
        """Asks its API; raises AssertionError with what it says is wrong."""
        url = f"{self.root}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def query(self, expression: str) -> list[Any]:
        """Returns the values of an instant query now, one a series; NaN where there is nothing to divide."""
        found = self.get("query", query=expression)
        return [float(one["value"][1]) for one in found["result"]] if found["resultType"] == "vector" else [found]


@contextlib.contextmanager
def running(config: Path, data: Path) -> Iterator[Prometheus]:
    """Runs the real Prometheus on a port of its own, and stops it by its id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    options = [f"--config.file={config}", f"--storage.tsdb.path={data}", f"--web.listen-address={address}"]
    data.parent.mkdir(parents=True, exist_ok=True)
    with (data.parent / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([str(find()), *options], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while not _is_ready(address):
            said = (data.parent / "prometheus.log").read_text()[-2000:]
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.1)
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
