"""The real vLLM server on the CPU, for the tests of `make test-full`."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from urllib.request import urlopen

from waiting import wait_until

ROOT = Path(__file__).parent.parent
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
START_S = 900.0  # a machine at work elsewhere takes minutes to start it


class Server:
    """A vLLM server as a user starts it: deploy/vllm/serve.sh with these flags."""

    def __init__(self, arguments: Sequence[str], port: int, log: Path, context: int = 512) -> None:
        assert PYTHON.exists(), f"{PYTHON} is missing: these tests run through `make test-full`, which makes it."
        self.port, self.log = port, log
        more = ["--port", str(port), "--enforce-eager", "--max-model-len", str(context), "--dtype", "float32"]
        self.command = [str(ROOT / "deploy/vllm/serve.sh"), *arguments, *more]
        path = f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}"
        # --enable-sleep-mode is refused on the CPU; the calls for it exist all the same, and pause the server.
        self.environment = os.environ | {
            "PATH": path,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_RPC_BASE_PATH": str(log.parent),  # its sockets, which a kill leaves behind
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["nice", *self.command], env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"vLLM ended:\n{self.log.read_text()[-3000:]}"
            try:
                with urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

        wait_until(ready, START_S)

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Ends the process group that `start` made, and nothing else."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(self.process.pid, how)
            self.process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # what the server started and left
        self.process.wait(30)
        self.process = None


def free_port() -> int:
    """Returns a port that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
