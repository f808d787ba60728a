"""What deploy/ promises without a container engine: its files are valid, and all that they name exists."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from deployed import DEPLOY, IMAGES, ROOT, Started, image_variables, instructions, started
from packaging.requirements import Requirement

from goldstream import cli
from schemas.settings import load_settings

SETTINGS = [
    "docker/goldstream.toml",
    "k8s/overlays/demo/goldstream.toml",
    "k8s/overlays/production/goldstream.toml",
]
TRAINER_ONLY = {"accelerate", "peft", "safetensors", "torch", "transformers"}
MAKES_FOLDERS = (
    "apt-get",
    "groupadd",
    "useradd",
    "install",
    "rm",
    "python",
    "/opt/goldstream/bin/pip",
    "command",
    "ln",
)


@pytest.mark.parametrize("command", started(), ids=lambda s: s.where)
def test_every_command_and_option_exists(command: Started) -> None:
    words, group = list(command.words), cli
    assert words, "an image is started with a command"
    context = click.Context(cli)
    while isinstance(group, click.Group) and words and not words[0].startswith("-"):
        _, chosen, words = group.resolve_command(context, words)
        assert chosen is not None
        context, group = click.Context(chosen, parent=context), chosen  # type: ignore[assignment]
    group.make_parser(context).parse_args(words)  # raises for an option that it does not have


@pytest.mark.parametrize("command", started(), ids=lambda s: s.where)
def test_every_variable_of_ours_is_a_setting(command: Started) -> None:
    ours = {name: value for name, value in command.variables.items() if name.startswith("GOLDSTREAM_")}
    plain = {name for name in ours if "__" not in name}
    assert plain <= {"GOLDSTREAM_CONFIG", "GOLDSTREAM_STATE_DIR"}
    load_settings(None, environ=ours)  # raises for a key that it does not know


@pytest.mark.parametrize("path", SETTINGS)
def test_the_settings_load_with_the_images_variables(path: str) -> None:
    for image in ("stream", "trainer"):
        variables = image_variables(image)
        settings = load_settings(DEPLOY / path, environ=variables)
        assert settings.state_dir == variables["GOLDSTREAM_STATE_DIR"]
        assert settings.metrics.port == 9100
        assert settings.metrics.host == "0.0.0.0"


@pytest.mark.parametrize("path", SETTINGS)
def test_a_cap_in_money_can_hold(path: str) -> None:
    from agents.prices import check_prices

    check_prices(load_settings(DEPLOY / path, environ={}))  # raises for a model whose price nobody knows


def test_the_demo_overlay_is_the_demo() -> None:
    ours, pod = (load_settings(DEPLOY / p, environ={}) for p in ("demo.toml", "k8s/overlays/demo/goldstream.toml"))
    assert pod.tasks == ours.tasks
    assert pod.local["scribe"].path == "/opt/goldstream/lib/python3.11/site-packages/" + ours.local["scribe"].path


@pytest.mark.parametrize("image", IMAGES)
def test_a_dockerfile_copies_what_is_there_and_not_kept_out(image: str) -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    for word, rest in instructions(image):
        if word != "COPY" or "--from=" in rest:
            continue
        *sources, _ = [part for part in rest.split() if not part.startswith("--")]
        for source in sources:
            assert (ROOT / source).exists(), source
            assert source == "." or in_context(source, rules), f"{source} is kept out by .dockerignore"


def in_context(path: str, rules: list[str]) -> bool:
    """Tells whether Docker sends a file to the builder: the last rule that fits decides."""
    kept = True
    for rule in rules:
        pattern = rule.removeprefix("!")
        if pattern == "**" or fnmatch.fnmatch(path, pattern) or path.startswith(pattern.rstrip("/") + "/"):
            kept = rule.startswith("!")
    return kept


def test_no_secret_and_no_state_gets_into_an_image() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    for path in ("deploy/docker/secrets/models.env", ".goldstream/gold/x.parquet", ".git/config", "goldstream.toml"):
        assert not in_context(path, rules), path
    assert in_context("streams/views.sql", rules)


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_pinned_and_runs_unprivileged(image: str) -> None:
    found = instructions(image)
    arguments = dict(rest.split("=", 1) for word, rest in found if word == "ARG")
    for word, rest in found:
        if word == "FROM":
            reference = re.sub(r"\$\{(\w+)\}", lambda m: arguments[m.group(1)], rest.split()[0])
            tag = reference.rpartition(":")[2]
            assert re.search(r"\d+\.\d+\.\d+", tag), f"{reference}: a tag with a version"
        if word == "RUN":
            programs = {part.split()[0] for part in re.split(r"&&|\|\|", re.sub(r"--mount=\S+", "", rest))}
            assert programs <= {*MAKES_FOLDERS}, programs
    assert [rest for word, rest in found if word == "USER"][-1] == "10001:10001"


@pytest.mark.parametrize(("image", "extras"), [("stream", []), ("trainer", ["trainer"])])
def test_an_image_asks_for_what_is_pinned(image: str, extras: list[str]) -> None:
    assert any(f"python requirements.py {' '.join(extras)}".strip() in rest for _, rest in instructions(image))
    script = DEPLOY / "docker" / "requirements.py"
    listed = subprocess.run([sys.executable, script, *extras], cwd=ROOT, capture_output=True, text=True, check=True)
    pins = (DEPLOY / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in pins}
    needed = closure(listed.stdout.split())
    assert needed - pinned == set()
    assert needed & TRAINER_ONLY == (TRAINER_ONLY if extras else set())


def closure(names: list[str]) -> set[str]:
    """Returns these distributions and all that they bring, as they are installed here."""
    found: set[str] = set()
    open_ends = [Requirement(name) for name in names]
    while open_ends:
        requirement = open_ends.pop()
        name = requirement.name.lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        for text in importlib.metadata.requires(name) or []:
            brought = Requirement(text)
            extras = [{"extra": extra} for extra in requirement.extras] or [{"extra": ""}]
            if brought.marker is None or any(brought.marker.evaluate(extra) for extra in extras):
                open_ends.append(brought)
    return found


def test_an_image_holds_every_file_that_our_code_reads() -> None:
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packed, needed = set(), set()
    for package in told["packages"]:
        folder = ROOT / package.replace(".", "/")
        packed |= set(folder.glob("*.py"))
        for name in ("*", package):
            packed |= {path for pattern in told["package-data"].get(name, ()) for path in folder.glob(pattern)}
    for folder in {ROOT / package.partition(".")[0] for package in told["packages"]}:
        needed |= {path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".pyc", ".md", ".png")}
    assert {str(path.relative_to(ROOT)) for path in needed - packed} == set()


def test_the_version_is_one() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    files = [DEPLOY / "compose.yaml", *(DEPLOY / "k8s").rglob("kustomization.yaml")]
    named = {
        tag
        for path in files
        for tag in re.findall(r"goldstream/(?:stream|trainer|vllm)(?::|, newTag: )(\d[\w.]*)", path.read_text())
    }
    assert named == {version}


def test_the_flags_of_vllm_pass_through_a_file(tmp_path: Path) -> None:
    flags, bin = tmp_path / "vllm-args", tmp_path / "bin"
    flags.write_text("--model '/models/a b' --max-lora-rank 64\n")
    bin.mkdir()
    (bin / "serve.sh").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (bin / "serve.sh").chmod(0o755)
    script, environment = DEPLOY / "docker" / "serve_from_file.sh", {"PATH": f"{bin}:/usr/bin:/bin"}
    done = subprocess.run([script, flags, "--seed", "1"], env=environment, capture_output=True, text=True, check=True)
    expected = ["--model", "/models/a b", "--max-lora-rank", "64", "--host", "0.0.0.0", "--port", "8000", "--seed", "1"]
    assert done.stdout.splitlines() == expected
    flags.write_text("")
    done = subprocess.run([script, flags], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "goldstream vllm-args" in done.stderr
