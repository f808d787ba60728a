"""compose.yaml: valid, nothing published beyond loopback, every container confined."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml
from compose_spec.models import Service
from deployed import DEPLOY, compose, image_of, image_variables, instructions

from schemas.settings import Settings, load_settings

SERVICES: dict[str, Any] = compose()["services"]
OURS = [name for name, service in SERVICES.items() if image_of(service["image"])]
ONCE = ["topics", "vllm-args"]
WRITES_ITS_ROOT = {"kafka"}  # its image writes the configuration when it starts
BROUGHT_USER = {"kafka"}  # runs as the unprivileged user of its image


def test_it_is_valid() -> None:
    found = compose_spec.PyCompose.from_yaml(yaml.safe_dump(compose())).to_spec()
    assert set(found.services or ()) == set(SERVICES)
    for name, service in SERVICES.items():
        assert set(service) - set(Service.model_fields) == set(), name


@pytest.mark.parametrize("wrong", ["bogus: 1", "restart: sometimes", "stop_grace_period: soon", "cap_drop: 5"])
def test_an_invalid_one_would_be_noticed(wrong: str) -> None:
    broken = compose() | {"services": {"x": {"image": "a"} | yaml.safe_load(wrong)}}
    with pytest.raises(ValueError, match=wrong.partition(":")[0]):
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(broken))


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_is_published_beyond_loopback(name: str) -> None:
    service = SERVICES[name]
    assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", []))
    assert "network_mode" not in service
    assert not service.get("privileged")


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("read_only", False) is (name not in WRITES_ITS_ROOT)
    assert name in BROUGHT_USER or service["user"].partition(":")[0] not in ("", "0", "root")
    limits = service["deploy"]["resources"]["limits"]
    assert {"memory", "pids"} <= set(limits)
    assert service["logging"]["options"]["max-size"]
    assert not [mount for mount in service.get("volumes", []) if "docker.sock" in mount]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_watched_and_restarted(name: str) -> None:
    service = SERVICES[name]
    if name in ONCE:
        assert service["restart"].startswith("on-failure")
    else:
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"]
    for other, how in service.get("depends_on", {}).items():
        expected = "service_completed_successfully" if other in ONCE else "service_healthy"
        assert how["condition"] == expected, other


@pytest.mark.parametrize("name", OURS)
def test_a_process_has_the_time_that_its_end_takes(name: str) -> None:
    seconds = int(re.fullmatch(r"(\d+)s", SERVICES[name]["stop_grace_period"])[1])  # type: ignore[index]
    assert seconds > Settings().worker.drain_s + 10


@pytest.mark.parametrize("name", [n for n in OURS if n not in ("topics", "vllm-args", "vllm")])
def test_the_health_check_asks_where_the_image_listens(name: str) -> None:
    image = image_of(SERVICES[name]["image"])
    port = image_variables(image)["GOLDSTREAM_METRICS__PORT"]
    assert f"127.0.0.1:{port}/metrics" in SERVICES[name]["healthcheck"]["test"][-1]
    assert ("EXPOSE", port) in instructions(image)


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_and_named_exists(name: str) -> None:
    service, top = SERVICES[name], compose()
    for mount in service.get("volumes", []):
        source, target, *_ = mount.split(":")
        if source == "./models":
            continue  # the user's own folder of base models
        assert source in top["volumes"] if "/" not in source else (DEPLOY / source).exists(), source
        assert target.startswith("/")
    assert set(service.get("networks", [])) <= set(top["networks"])
    for file in service.get("env_file", []):
        assert (DEPLOY / (file["path"] + ".example")).exists()
    if "build" in service:
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).exists()


@pytest.mark.parametrize("name", ["trainer", "trainer-gpu", "rollout", "vllm"])
def test_whoever_loads_the_base_or_checks_adapters_against_it_has_its_folder(name: str) -> None:
    base = load_settings(DEPLOY / "docker" / "goldstream.toml").tasks["support"].trainer.base
    assert base.startswith("/models/")
    assert "./models:/models:ro" in SERVICES[name]["volumes"]


def test_vllm_is_reached_only_by_who_calls_it() -> None:
    assert SERVICES["vllm"]["networks"] == ["models"]
    assert compose()["networks"]["models"] == {"internal": True}
    assert "ports" not in SERVICES["vllm"]
    reach = {name for name, service in SERVICES.items() if "models" in service["networks"]} - {"vllm"}
    assert reach == {"worker", "rollout", "trainer", "trainer-gpu"}


def test_prometheus_asks_every_process_that_listens() -> None:
    told = yaml.safe_load((DEPLOY / "docker" / "prometheus.yml").read_text())
    (names,) = told["scrape_configs"][0]["dns_sd_configs"]
    listen = {name for name in OURS if name not in ("topics", "vllm-args", "vllm")}
    assert set(names["names"]) == listen
    assert str(names["port"]) == image_variables("stream")["GOLDSTREAM_METRICS__PORT"]
    rules = [rule for rule in told["rule_files"] if f":/etc/prometheus/{rule}:ro" in str(SERVICES["prometheus"])]
    assert rules == told["rule_files"]


def test_keys_go_only_to_who_calls_models() -> None:
    reads = {name for name, service in SERVICES.items() if "models.env" in str(service.get("env_file"))}
    assert reads == {"worker", "rollout", "trainer", "trainer-gpu", "vllm"}
    for example in (DEPLOY / "docker" / "secrets").iterdir():
        if example.suffix == ".example":
            values = [line.partition("=")[2] for line in example.read_text().splitlines() if not line.startswith("#")]
            assert set(values) == {""}, f"{example} holds a value"


def test_settings_file_is_the_one_that_is_mounted() -> None:
    mounts = {mount for name in OURS for mount in SERVICES[name].get("volumes", []) if "goldstream.toml" in mount}
    assert mounts == {"./docker/goldstream.toml:/etc/goldstream/goldstream.toml:ro"}
    assert image_variables("stream")["GOLDSTREAM_CONFIG"] == "/etc/goldstream/goldstream.toml"
    assert Path(DEPLOY / "docker" / "goldstream.toml").exists()
