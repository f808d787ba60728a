"""The broker of a fault run, which every lane shares and which a fault may kill."""

from __future__ import annotations

import threading
from pathlib import Path

from schemas.settings import load_settings
from streams.broker import kill_broker, start_broker, stop_broker


class Broker:
    """The one broker of a run; it can die and come back on its port with its data."""

    def __init__(self, folder: Path) -> None:
        self.given_up = threading.Event()  # by whoever runs the table
        self._settings = load_settings(None, [f"state_dir={folder}"], environ={})
        self.address = start_broker(self._settings).bootstrap_servers

    def kill(self) -> None:
        """Kills it as a power cut would kill the process."""
        kill_broker(self._settings)

    def start(self) -> None:
        """Starts it again, on the same port."""
        status = start_broker(self._settings, int(self.address.rpartition(":")[2]))
        assert status.bootstrap_servers == self.address

    def stop(self) -> None:
        """Stops it in order."""
        stop_broker(self._settings)
