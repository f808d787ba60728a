"""Several processes, one run: each forwards its share of a batch's rows, and gradients are summed.

`train_in_processes` starts one process a GPU on this machine for trainer.loop and follows the run; the processes find
each other through a file, and speak over the loopback interface. `torchrun -m trainer.distributed FILE`, with a Job in
the file, starts the same by other means.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import torch
from torch import Tensor

from schemas.errors import TrainingError
from schemas.process import signal_at_parents_death
from schemas.settings import Trainer
from trainer.dataset import Example
from trainer.objectives import WeightStats

JOB, RESULT, STEPS_LOG = "job.msgpack", "result.json", "steps.jsonl"
_RENDEZVOUS = "GOLDSTREAM_TRAINER_RENDEZVOUS"
_POLL_S = 0.2
_STOP_S = 10.0

Result = TypeVar("Result")


class World(NamedTuple):
    """The processes of a run, seen from one of them."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    def share(self, rows: Sequence[Result]) -> Sequence[Result]:
        """Returns this process's part of a batch's rows; rows come longest first."""
        return rows[self.rank :: self.size]

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Adds up tensors of one dtype over all processes, in place."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, total in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def merged(self, stats: WeightStats) -> WeightStats:
        """Returns the weight statistics of all processes together."""
        if self.size == 1:
            return stats
        sums = torch.tensor(stats[:3], dtype=torch.float64, device=self.device)
        largest = torch.tensor(stats.largest, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(sums)
        torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
        count, total, squares = sums.tolist()
        return WeightStats(int(count), total, squares, largest.item())

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Lets rank 0 through first, the others when it is done: they find what it wrote."""
        if self.size > 1 and self.rank > 0:
            torch.distributed.barrier()
        yield
        if self.size > 1 and self.rank == 0:
            torch.distributed.barrier()


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of train_lora, for processes that do not share memory."""

    base: str
    examples: list[Example]
    settings: Trainer
    out: str
    base_name: str
    watermark: dict[int, int]
    initial: str
    resume: bool


def this_world() -> World:
    """Returns the world this process was started in: alone unless a launcher set WORLD_SIZE."""
    gpu = torch.cuda.is_available()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World(device=torch.device("cuda" if gpu else "cpu"))
    from accelerate import PartialState  # starts the process group where nobody has

    rendezvous = os.environ.get(_RENDEZVOUS)
    if rendezvous and not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            "nccl" if gpu else "gloo",
            init_method=f"file://{rendezvous}",
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
        )
    state = PartialState(cpu=not gpu)
    return World(state.process_index, state.num_processes, state.device)


def processes_of(settings: Trainer) -> int:
    """Returns how many processes a run has: as set, one a GPU for 0."""
    return settings.processes or max(1, torch.cuda.device_count())


def train_in_processes(
    job: Job, count: int, progress: Callable[[int, int, float, float], None], result_type: type[Result]
) -> Result:
    """Runs a job in `count` processes and returns its result.

    1. write the job;
    2. start the processes;
    3. hand on the steps they log, until all have ended;
    4. read the result.

    Raises TrainingError where a process fails; whatever `progress` raises ends them all.
    """
    out = Path(job.out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    rendezvous = out / f".rendezvous-{os.getpid()}-{time.monotonic_ns()}"
    (out / RESULT).unlink(missing_ok=True)
    (out / JOB).write_bytes(msgspec.msgpack.encode(job))  # 1
    children: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(count):  # 2
            own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            threads = job.settings.threads or max(1, (os.cpu_count() or 1) // count)
            environ = os.environ | {key: str(value) for key, value in own.items()}
            environ |= {_RENDEZVOUS: str(rendezvous), "OMP_NUM_THREADS": str(threads)}
            if sys.platform == "linux":
                environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
            command = [sys.executable, "-m", "trainer.distributed", str(out / JOB), str(os.getpid())]
            with (out / f"rank-{rank}.log").open("wb") as log:
                children.append(subprocess.Popen(command, env=environ, stdout=log, stderr=log))
        steps = _Steps(out / STEPS_LOG)
        while any(child.poll() is None for child in children):  # 3
            failed = next((rank for rank, child in enumerate(children) if child.poll()), None)
            if failed is not None:
                raise TrainingError(_failure(out, failed, children[failed].returncode))
            steps.hand_to(progress)
            time.sleep(_POLL_S)
        failed = next((rank for rank, child in enumerate(children) if child.returncode), None)
        if failed is not None or not (out / RESULT).exists():
            raise TrainingError(_failure(out, failed or 0, children[failed or 0].returncode))
        steps.hand_to(progress)
        return msgspec.json.decode((out / RESULT).read_bytes(), type=result_type)  # 4
    finally:
        for child in children:
            child.terminate()
        for child in children:
            try:
                child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        rendezvous.unlink(missing_ok=True)
        (out / JOB).unlink(missing_ok=True)


class _Steps:
    """Reads the lines another process adds to a step log."""

    def __init__(self, path: Path) -> None:
        self.path, self.seen = path, 0

    def hand_to(self, progress: Callable[[int, int, float, float], None]) -> None:
        """Calls `progress` for every line that is new and whole."""
        if not self.path.exists():
            return
        lines = self.path.read_bytes().split(b"\n")[:-1]
        for line in lines[self.seen :]:
            entry = msgspec.json.decode(line)
            if entry["step"] > self.seen:
                progress(entry["step"], entry["steps"], entry["loss"], entry["tokens_per_s"])
        self.seen = max(self.seen, len(lines))


def _failure(out: Path, rank: int, code: int) -> str:
    """Returns a failed process's own words: the last line it wrote."""
    lines = (out / f"rank-{rank}.log").read_text("utf-8", "replace").strip().splitlines()
    said = lines[-1] if lines else "it wrote nothing"
    return f"process {rank} of the run ended with exit status {code}: {said} (all of it: {out}/rank-{rank}.log)"


def _main(job_file: Path, parent: int | None) -> None:
    """Is one process of a run; ends when whoever started it is gone, so that no run has two owners."""
    from trainer.loop import train_lora

    if parent is not None:
        signal_at_parents_death(signal.SIGKILL)  # what it holds is only memory: the checkpoint is what counts
    job = msgspec.msgpack.decode(job_file.read_bytes(), type=Job)

    def watch(step: int, steps: int, loss: float, tokens_per_s: float) -> None:
        if parent is not None and os.getppid() != parent:
            sys.exit("the trainer that started this run is gone")

    try:
        stats = train_lora(
            Path(job.base),
            job.examples,
            job.settings,
            Path(job.out),
            base_name=job.base_name,
            watermark=job.watermark,
            initial=Path(job.initial) if job.initial else None,
            resume=job.resume,
            progress=watch,
        )
        if int(os.environ.get("RANK", "0")) == 0:
            (Path(job.out) / RESULT).write_bytes(msgspec.json.encode(stats))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
