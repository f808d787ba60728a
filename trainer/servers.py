"""The vLLM servers of a student: their HTTP calls for adapters and sleep, and how to start one.

trainer.rollout loads adapters through here, trainer.sleep puts servers to sleep. A server must see the registry under
the same path. Read against vLLM 0.32.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib import error as urllib_error
from urllib import request as urllib_request

from schemas.adapters import adapter_folder
from schemas.errors import AdapterError, SettingsError
from schemas.settings import Settings, Task

ADAPTERS_PER_TASK = 3  # the one that serves, the one before it (canary, calls under way), the one being tested
LOOK_TIMEOUT_S = 5.0  # for calls that touch no model
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes
_QUESTION = ({"role": "user", "content": "Say OK."},)


class VllmServer:
    """One server. Calls raise AdapterError where it says no, OSError where nobody answers in time."""

    def __init__(self, address: str, key_env: str = "", timeout_s: float = 60.0) -> None:
        self.root = address.rstrip("/").removesuffix("/v1")
        self.key_env, self.timeout_s = key_env, timeout_s

    def __str__(self) -> str:
        return self.root

    def names(self) -> list[str]:
        """Returns the models and adapters it serves now."""
        listed = self._call("/v1/models", None, LOOK_TIMEOUT_S).get("data") or []
        return [str(model.get("id")) for model in listed if isinstance(model, dict)]

    def load(self, name: str, folder: Path) -> None:
        """Loads an adapter under `name`; an error says which flag refused it."""
        try:
            self._call("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder.resolve())})
        except AdapterError as error:
            text = str(error)
            if "max_lora_rank" in text:
                rank = adapter_rank(folder)
                raise AdapterError(
                    f"{self} refuses {name}: its rank is {rank}, and the server was started with a smaller "
                    f"--max-lora-rank. Start it with --max-lora-rank {max_lora_rank(rank)} (`goldstream vllm-args` "
                    f"prints all flags), or set trainer.rank lower and train again. It said: {text}"
                ) from error
            if "No adapter found" in text:
                raise AdapterError(
                    f"{self} does not find {folder.resolve()}. It must see the adapter registry under the same path "
                    "as Goldstream: mount it there, read-only is enough."
                ) from error
            if " 404 " in text:
                raise AdapterError(
                    f"{self} cannot load adapters while it runs. Start it with --enable-lora and "
                    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, as deploy/vllm/serve.sh does."
                ) from error
            raise

    def unload(self, name: str) -> None:
        """Unloads an adapter."""
        self._call("/v1/unload_lora_adapter", {"lora_name": name}, LOOK_TIMEOUT_S)

    def answer(self, name: str) -> str:
        """Returns a few greedy tokens of a model or adapter; raises AdapterError where they fail to come or are odd."""
        body = {
            "model": name,
            "messages": _QUESTION,
            "max_tokens": 8,
            "temperature": 0,
            "logprobs": True,
            "chat_template_kwargs": {"enable_thinking": False},
        }
        try:
            answer = self._call("/v1/chat/completions", body)
            text = answer["choices"][0]["message"]["content"]
            tokens = answer["usage"]["completion_tokens"]
            scored = [t["logprob"] for t in (answer["choices"][0].get("logprobs") or {}).get("content") or ()]
        except (KeyError, IndexError, TypeError) as error:
            raise AdapterError(f"{name} failed its smoke test: the answer of {self} holds no completion.") from error
        except AdapterError as error:  # vLLM says 400, "not JSON compliant", where a log-probability is no number
            raise AdapterError(f"{name} failed its smoke test: {error}") from error
        except OSError as error:  # it answered a moment ago: this adapter hangs or breaks it
            raise AdapterError(
                f"{name} failed its smoke test: no answer from {self} within {self.timeout_s:g} s ({error})."
            ) from error
        if not tokens or text is None:
            raise AdapterError(f"{name} failed its smoke test: {self} answered without a token.")
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in scored):
            raise AdapterError(
                f"{name} failed its smoke test: {self} answered with log-probabilities that are no number."
            )
        return str(text)

    def sleep(self) -> None:
        """Frees its GPU memory once the calls under way have ended; calls that come now wait until it wakes."""
        try:
            self._call("/sleep?level=1&mode=wait", {})
            asleep = self.is_asleep()
        except AdapterError as error:
            raise AdapterError(
                f"{self} cannot sleep. Start it with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1, as "
                f"deploy/vllm/serve.sh does where trainer.share_gpu is set. It said: {error}"
            ) from error
        if not asleep:
            raise AdapterError(f"{self} was asked to sleep and says that it is awake.")

    def wake(self) -> None:
        """Lets it serve again."""
        self._call("/wake_up", {})
        if self.is_asleep():
            raise AdapterError(f"{self} was woken and says that it is asleep. If that lasts, start it anew.")

    def is_asleep(self) -> bool:
        """Tells whether it sleeps."""
        return bool(self._call("/is_sleeping", None, LOOK_TIMEOUT_S).get("is_sleeping"))

    def _call(self, path: str, body: dict[str, Any] | None, timeout_s: float | None = None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self.key_env:
            key = os.environ.get(self.key_env, "")
            if not key:
                raise SettingsError(f"{self} takes its key from {self.key_env}, which is not set. Export it.")
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        call = urllib_request.Request(self.root + path, data=data, headers=headers)
        try:
            with urllib_request.urlopen(call, timeout=timeout_s or self.timeout_s) as response:
                text: bytes = response.read()
        except urllib_error.HTTPError as error:
            detail = error.read()[:400].decode("utf-8", "replace")
            hint = f" The key comes from student.api_key_env, {self.key_env!r}." if error.code in (401, 403) else ""
            raise AdapterError(f"{self} answered {error.code} to {path}: {detail}{hint}") from error
        except HTTPException as error:
            raise ConnectionError(f"{self} broke off its answer to {path}: {error}") from error
        except OSError as error:  # URLError is one, and so is a timeout
            raise ConnectionError(f"{self} does not answer {path}: {getattr(error, 'reason', error)}") from error
        try:
            answer = json.loads(text)
        except ValueError:  # the load calls answer in plain text
            return {}
        return answer if isinstance(answer, dict) else {}


def student_servers(task: Task) -> list[VllmServer]:
    """Returns every vLLM server of a task's student; none where the student is no hosted_vllm model.

    Raises SettingsError where there is no address.
    """
    student, rollout = task.student, task.rollout
    if not student.model.startswith("hosted_vllm/"):
        return []
    addresses = rollout.servers or ((student.api_base,) if student.api_base else ())
    if not addresses:
        raise SettingsError("the student's api_base is empty; set it to the vLLM server's address, ending in /v1.")
    return [VllmServer(address, student.api_key_env, rollout.timeout_s) for address in addresses]


def adapter_rank(folder: Path) -> int:
    """Returns the LoRA rank of an adapter folder."""
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    return max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])


def max_lora_rank(rank: int) -> int:
    """Returns the smallest --max-lora-rank that vLLM takes and that is enough; raises SettingsError beyond 512."""
    enough = next((known for known in _RANKS if known >= rank), None)
    if enough is None:
        raise SettingsError(f"trainer.rank is {rank}; vLLM serves adapters up to rank {_RANKS[-1]}. Set it lower.")
    return enough


def vllm_arguments(settings: Settings, task: str) -> list[str]:
    """Returns the flags with which a vLLM server can serve a task's student and every adapter trained for it.

    Tasks that share the student's model share the server: rank and number of adapters cover all of them. Adapters that
    are already in the registry count too, so that going back to one stays possible after trainer.rank was lowered.
    """
    chosen = settings.task(task).student
    name = chosen.model.partition("/")[2]
    if chosen.model.startswith("local/"):
        model = settings.local[name].path
    elif chosen.model.startswith("hosted_vllm/"):
        model = settings.task(task).trainer.base or name
    else:
        raise SettingsError(
            f"tasks.{task}.student.model is {chosen.model!r}; vLLM serves hosted_vllm/NAME or local/NAME."
        )
    sharing = [other for other, its in settings.tasks.items() if its.student.model == chosen.model]
    ranks = [settings.task(other).trainer.rank for other in sharing]
    ranks += [rank for other in sharing for rank in _known_ranks(settings, other)]
    arguments = ["--model", model, "--served-model-name", name, "--enable-lora"]
    arguments += ["--max-lora-rank", str(max_lora_rank(max(ranks)))]
    arguments += ["--max-loras", str(ADAPTERS_PER_TASK * len(sharing))]
    if any(settings.task(other).trainer.share_gpu for other in sharing):
        arguments.append("--enable-sleep-mode")
    return arguments


def _known_ranks(settings: Settings, task: str) -> Sequence[int]:
    from trainer.registry import list_adapters

    versions = [manifest.version for manifest in list_adapters(settings.adapters, task)]
    folders = [adapter_folder(settings.adapters, task, version) for version in versions]
    return [adapter_rank(folder) for folder in folders if (folder / "adapter_config.json").exists()]
