"""The Kubernetes overlays: valid for the API server, confined, and every name in them stands for something."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml
from deployed import DEPLOY, OVERLAYS, has_kustomize, image_of, image_variables, overlay, pods

from schemas.settings import Settings, load_settings
from schemas.topics import STAGE_INPUT

pytestmark = pytest.mark.skipif(not has_kustomize(), reason="install kubectl or kustomize to render the overlays")
VERSIONS = ("1.32", "1.34")
OF_OTHERS = {"keda.sh/v1alpha1"}  # kinds that Kubernetes itself does not know
# Made by hand, as the production overlay's first lines tell.
SECRETS = {f"goldstream-{name}" for name in ("kafka", "models", "webhook", "vllm", "keda")}
both = pytest.mark.parametrize("name", OVERLAYS)


@both
@pytest.mark.parametrize("version", VERSIONS)
def test_the_api_server_would_take_it(name: str, version: str) -> None:
    things = overlay(name)
    assert len(things) > 20
    for thing in things:
        if thing["apiVersion"] not in OF_OTHERS:
            kubernetes_validate.validate(thing, version, strict=True)  # strict: an unknown key is an error


def test_an_unknown_key_would_be_noticed() -> None:
    broken = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a"}, "automountToken": False}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[0], strict=True)


@both
def test_the_cron_job_of_the_component_is_valid_too(name: str) -> None:
    job = yaml.safe_load((DEPLOY / "k8s" / "components" / "trainer-cronjob" / "nightly.yaml").read_text())
    kubernetes_validate.validate(job, VERSIONS[0], strict=True)
    trainer = next(thing for thing in overlay(name) if thing["metadata"]["name"] == "trainer" and "spec" in thing)
    pod, resident = job["spec"]["jobTemplate"]["spec"]["template"]["spec"], trainer["spec"]["template"]["spec"]
    for field in ("securityContext", "automountServiceAccountToken", "serviceAccountName", "enableServiceLinks"):
        assert pod[field] == resident[field], field
    assert pod["containers"][0]["securityContext"] == resident["containers"][0]["securityContext"]


def every_pod(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, _, spec in pods(overlay(name)):
        yield where, spec


@both
def test_every_pod_is_confined(name: str) -> None:
    for where, spec in every_pod(name):
        assert spec["automountServiceAccountToken"] is False, where
        assert spec["securityContext"]["runAsNonRoot"] is True, where
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, where
            assert context["capabilities"] == {"drop": ["ALL"]}, where
            assert context.get("readOnlyRootFilesystem", False) is bool(image_of(container["image"])), where
            assert "memory" in container["resources"]["limits"], where
            assert ":" in container["image"], f"{where}: {container['image']} is not pinned"


@both
def test_every_pod_of_ours_is_probed_where_it_listens(name: str) -> None:
    for where, spec in every_pod(name):
        container = spec["containers"][0]
        image = image_of(container["image"])
        if image not in ("stream", "trainer") or where.startswith("Job/"):
            continue
        (port,) = container["ports"]
        assert str(port["containerPort"]) == image_variables(image)["GOLDSTREAM_METRICS__PORT"], where
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"] == {"path": "/metrics", "port": port["name"]}, where
        assert spec["terminationGracePeriodSeconds"] > Settings().worker.drain_s + 10, where


@both
def test_every_name_stands_for_something(name: str) -> None:
    known = {(thing["kind"], thing["metadata"]["name"]) for thing in overlay(name)}
    for where, _, spec in pods(overlay(name)):
        assert ("ServiceAccount", spec["serviceAccountName"]) in known, where
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        own = next(t for t in overlay(name) if f"{t['kind']}/{t['metadata']['name']}" == where)
        volumes |= {c["metadata"]["name"]: {} for c in own["spec"].get("volumeClaimTemplates", [])}
        for volume in volumes.values():
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in known, where
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in known, where
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= set(volumes), where
            assert {source["secretRef"]["name"] for source in container.get("envFrom", [])} <= SECRETS, where


@pytest.mark.parametrize("process", ["trainer", "rollout", "vllm"])
def test_whoever_loads_the_base_or_checks_adapters_against_it_has_its_folder(process: str) -> None:
    (base,) = {
        task.trainer.base for task in load_settings(DEPLOY / "k8s/overlays/production/goldstream.toml").tasks.values()
    }
    (spec,) = [spec for _, labels, spec in pods(overlay("production")) if labels["app.kubernetes.io/name"] == process]
    mounts = {mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
    assert base.startswith("/models/")
    assert "/models" in mounts


@both
def test_every_selector_finds_pods(name: str) -> None:
    labels = [found for _, found, _ in pods(overlay(name))]
    for thing in overlay(name):
        spec = thing.get("spec", {})
        for selector in selectors(thing["kind"], spec):
            assert any(selects(selector, found) for found in labels), (thing["kind"], thing["metadata"]["name"])


def selectors(kind: str, spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if kind in ("PodDisruptionBudget", "Deployment", "StatefulSet"):
        yield spec["selector"]
    if kind == "Service":
        yield {"matchLabels": spec["selector"]}
    if kind == "NetworkPolicy":
        yield spec["podSelector"]


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    equal = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    among = all(labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", []))
    return equal and among


@both
def test_every_process_may_reach_names_and_kafka(name: str) -> None:
    (policy,) = [thing for thing in overlay(name) if thing["metadata"]["name"] == "names-and-kafka"]
    for where, labels, spec in pods(overlay(name)):
        if image_of(spec["containers"][0]["image"]) in ("stream", "trainer"):
            assert selects(policy["spec"]["podSelector"], labels), where
    ports = {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}
    settings = settings_of(name)
    assert {int(address.rpartition(":")[2]) for address in settings.kafka.bootstrap_servers.split(",")} <= ports


def settings_of(name: str) -> Settings:
    return load_settings(DEPLOY / "k8s" / "overlays" / name / "goldstream.toml", environ={})


@both
def test_one_sink_one_trainer_one_rollout_and_the_new_waits_for_the_old(name: str) -> None:
    by_name = {
        thing["metadata"]["name"]: thing for thing in overlay(name) if thing["kind"] in ("Deployment", "StatefulSet")
    }
    assert (by_name["sink"]["kind"], by_name["sink"]["spec"]["replicas"]) == ("StatefulSet", 1)
    for single in ("trainer", "rollout", "exporter"):
        assert by_name[single]["spec"]["replicas"] == 1
        assert by_name[single]["spec"]["strategy"] == {"type": "Recreate"}


def test_workers_scale_on_the_lag_of_every_stage() -> None:
    settings = settings_of("production")
    (scaled,) = [thing for thing in overlay("production") if thing["kind"] == "ScaledObject"]
    (worker,) = [t for t in overlay("production") if t["kind"] == "Deployment" and t["metadata"]["name"] == "worker"]
    assert scaled["spec"]["scaleTargetRef"] == {"kind": "Deployment", "name": "worker"}
    assert "replicas" not in worker["spec"], "KEDA's number would be undone"
    assert scaled["spec"]["maxReplicaCount"] == settings.kafka.partitions
    found = {}
    for trigger in scaled["spec"]["triggers"]:
        told = trigger["metadata"]
        assert all(isinstance(value, str) for value in told.values())
        assert told["bootstrapServers"] == settings.kafka.bootstrap_servers
        assert trigger["authenticationRef"] == {"name": "kafka"}
        assert int(told["lagThreshold"]) > settings.worker.cases_in_flight
        found[told["consumerGroup"]] = told["topic"]
    assert found == {settings.topic(role): settings.topic(topic) for role, topic in STAGE_INPUT.items()}


def test_no_overlay_holds_a_secret() -> None:
    for name in OVERLAYS:
        assert not [thing for thing in overlay(name) if thing["kind"] == "Secret"]
