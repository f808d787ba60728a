"""The /metrics of a process, on loopback unless told otherwise, and the file that tells Prometheus where it is.

Each long-running command opens one. The file has the form of Prometheus's file_sd, one a process:
<state>/run/<process>.metrics.json. It is left behind by a process that is killed, and written anew by the next.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from schemas.errors import SettingsError
from schemas.measures import PROCESS_FAMILIES, TRACING_SPANS
from schemas.metrics import Family
from schemas.process import NAME
from schemas.settings import Settings

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

log = logging.getLogger(__name__)

TRIED_PORTS = 50  # from metrics.port on
TRIED_NAMES = 20


@contextlib.contextmanager
def serving_metrics(
    settings: Settings, process: str, families: Sequence[Family] | None = None, port: int | None = None
) -> Iterator[str]:
    """Shows a process's families at /metrics while the block runs; gives the address, "" where metrics are off.

    `port` is before that of the settings. Raises SettingsError where no port can be had.
    """
    if settings.metrics.port == "off" and port is None:
        yield ""
        return
    try:
        from prometheus_client import CollectorRegistry, ProcessCollector
    except ImportError:  # a GPU machine that only trains may do without
        log.warning("no /metrics: the package prometheus-client is not installed")
        yield ""
        return
    registry = CollectorRegistry(auto_describe=False)
    shown = tuple(PROCESS_FAMILIES[process] if families is None else families)
    registry.register(_collector((*shown, TRACING_SPANS) if settings.tracing.endpoint else shown))
    ProcessCollector(registry=registry)
    server, thread = _bound(settings, registry, port)
    address = _address(settings.metrics.host, server.server_port)
    path = None
    try:
        path = _tell(settings.state, os.environ.get(NAME) or process, process, address)
        log.info("metrics at http://%s/metrics", address)
        yield address
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
        if path is not None and _targets(path) == [address]:  # else another has taken its place
            path.unlink(missing_ok=True)


def scrape(families: Iterable[Family]) -> str:
    """Returns families as a scrape shows them."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_collector(tuple(families)))
    return generate_latest(registry).decode()


def _collector(families: Sequence[Family]) -> Collector:
    from prometheus_client import Metric
    from prometheus_client.registry import Collector

    class Families(Collector):
        def collect(self) -> Iterator[Metric]:
            for family in families:
                metric = Metric(family.name, family.help, family.kind)
                for suffix, labels, value in family.samples():
                    metric.add_sample(family.name + suffix, labels, value)
                yield metric

    return Families()


def _bound(settings: Settings, registry: Any, port: int | None) -> tuple[Any, Any]:
    from prometheus_client import start_http_server

    host, wanted = settings.metrics.host, settings.metrics.port
    if port is not None:
        ports: Sequence[int] = [port]
    else:
        ports = range(wanted, min(wanted + TRIED_PORTS, 65536)) if isinstance(wanted, int) else [0]
    for number in ports:
        try:
            return start_http_server(number, addr=host, registry=registry)
        except OSError as error:
            refused = error
    raise SettingsError(
        f"metrics: no /metrics can be opened on {host}, port {ports[0] or 'any'}"
        f"{f' to {ports[-1]}' if len(ports) > 1 else ''}: {refused}. Set metrics.host to an address of this machine "
        'and metrics.port to a free port, "free" or "off".'
    )


def _address(host: str, port: int) -> str:
    """Returns where a Prometheus finds it: on this machine by loopback, elsewhere by this machine's name."""
    if host in ("0.0.0.0", "::", ""):
        host = socket.gethostname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _tell(state: Path, name: str, process: str, address: str) -> Path | None:
    """Writes the process's file; a second process of the same name takes the next one that nobody lives behind."""
    try:
        (state / "run").mkdir(parents=True, exist_ok=True)
        for number in range(1, TRIED_NAMES + 1):
            path = targets_file(state, name if number == 1 else f"{name}-{number}")
            if number == TRIED_NAMES or not any(map(_answers, _targets(path))):
                break
        temp = path.with_suffix(f".{os.getpid()}")
        temp.write_bytes(msgspec.json.encode([{"targets": [address], "labels": {"process": process}}]))
        temp.replace(path)
        return path
    except OSError as error:
        log.warning("%s cannot be written (%s): Prometheus must be told %s otherwise", state / "run", error, address)
        return None


def targets_file(state: Path, name: str) -> Path:
    """Returns where a process tells Prometheus its address."""
    return state / "run" / f"{name}.metrics.json"


def _targets(path: Path) -> list[str]:
    try:
        return [target for group in msgspec.json.decode(path.read_bytes()) for target in group["targets"]]
    except (OSError, msgspec.DecodeError, TypeError, KeyError):
        return []


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=0.3):
            return True
    except (OSError, ValueError):
        return False
