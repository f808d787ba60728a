"""The commands of ours that deploy/ starts, with their variables, read from its own files."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
OVERLAYS = ("demo", "production")
IMAGES = {"stream": "goldstream/stream", "trainer": "goldstream/trainer", "vllm": "goldstream/vllm"}


class Started(NamedTuple):
    """A `goldstream` command that a file starts."""

    where: str
    words: tuple[str, ...]
    variables: dict[str, str]


@cache
def compose() -> dict[str, Any]:
    """Returns compose.yaml with the defaults of its variables, merged as YAML says."""
    text = interpolated((DEPLOY / "compose.yaml").read_text(), {})
    return dict(yaml.safe_load(text))


def interpolated(text: str, environ: Mapping[str, str]) -> str:
    """Returns a compose file's text with ${NAME:-default} replaced; $$ is a dollar."""
    replaced = re.sub(
        r"(?<!\$)\$\{(\w+)(?::-([^}]*))?\}", lambda m: environ.get(m.group(1)) or (m.group(2) or ""), text
    )
    return replaced.replace("$$", "$")


@cache
def overlay(name: str) -> list[dict[str, Any]]:
    """Returns the objects of a Kubernetes overlay, rendered by kustomize."""
    program = [shutil.which("kustomize"), "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    folder = DEPLOY / "k8s" / "overlays" / name
    done = subprocess.run([*map(str, program), str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [thing for thing in yaml.safe_load_all(done.stdout) if thing]


def has_kustomize() -> bool:
    """Tells whether overlays can be rendered here."""
    return bool(shutil.which("kustomize") or shutil.which("kubectl"))


def pods(things: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Gives kind/name, labels and pod spec of everything that makes pods."""
    for thing in things:
        spec = thing.get("spec", {})
        if thing["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if "template" in spec:
            template = spec["template"]
            yield f"{thing['kind']}/{thing['metadata']['name']}", template["metadata"]["labels"], template["spec"]


@cache
def image_variables(image: str) -> dict[str, str]:
    """Returns what the last stage of an image's Dockerfile sets."""
    variables: dict[str, str] = {}
    for word, rest in instructions(image):
        if word == "FROM":
            variables = {}
        if word == "ENV":
            variables |= dict(pair.split("=", 1) for pair in shlex.split(rest))
    return variables


def instructions(image: str) -> list[tuple[str, str]]:
    """Returns a Dockerfile as (instruction, the rest of it), its lines joined."""
    text = (DEPLOY / "docker" / f"{image}.Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines()]


def image_of(reference: str) -> str:
    """Returns which of our Dockerfiles makes an image, "" for an image of others."""
    name = reference.rpartition(":")[0] or reference
    return next((ours for ours, known in IMAGES.items() if name.endswith(known)), "")


def started() -> list[Started]:
    """Returns every command of ours that anything in deploy/ starts."""
    return [*_by_compose(), *_by_systemd(), *(found for name in OVERLAYS for found in _by_overlay(name))]


def _by_compose() -> Iterator[Started]:
    for name, service in compose()["services"].items():
        image = image_of(service["image"])
        if image in ("stream", "trainer"):
            variables = image_variables(image) | service.get("environment", {})
            for words in _commands(service.get("entrypoint"), service.get("command", [])):
                yield Started(f"compose.yaml: {name}", tuple(words), variables)


def _by_overlay(overlay_name: str) -> Iterator[Started]:
    if not has_kustomize():
        return
    for where, _, spec in pods(overlay(overlay_name)):
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            image = image_of(container["image"])
            if image in ("stream", "trainer"):
                variables = image_variables(image) | {v["name"]: v["value"] for v in container.get("env", [])}
                for words in _commands(container.get("command"), container.get("args", [])):
                    yield Started(f"overlays/{overlay_name}: {where}", tuple(words), variables)


def _by_systemd() -> Iterator[Started]:
    common = units()["goldstream-.service.d/10-process.conf"]
    for name, lines in units().items():
        for line in lines:
            if line.startswith("ExecStart="):
                program, *words = shlex.split(line.removeprefix("ExecStart="))
                assert program == "/opt/goldstream/bin/goldstream", name
                pairs = [x.removeprefix("Environment=") for x in [*common, *lines] if x.startswith("Environment=")]
                yield Started(f"systemd: {name}", tuple(words), dict(pair.split("=", 1) for pair in pairs))


def units() -> dict[str, list[str]]:
    """Returns the lines of every file in deploy/systemd."""
    folder = DEPLOY / "systemd"
    return {p.relative_to(folder).as_posix(): p.read_text().splitlines() for p in folder.rglob("*") if p.is_file()}


def _commands(entrypoint: list[str] | None, command: list[str]) -> Iterator[list[str]]:
    """Gives what follows `goldstream`; of a shell's text, each command of ours in it."""
    if not entrypoint:
        yield list(command)
        return
    for text in entrypoint:
        for found in re.findall(r"goldstream ([a-z][^>|;&]*)", text):
            yield shlex.split(found.replace('"$TASK"', "support"))
