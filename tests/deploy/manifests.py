"""What the overlays of deploy/k8s come to, rendered by kubectl."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
OVERLAYS = ("dev", "prod")
SERVICES = ("issuer", "ledger", "dlq")
NAMESPACE = "firstcome"
IMAGE = "localhost/firstcome:dev"
KUBECTL = shutil.which("kubectl")

Object = Mapping[str, Any]


@functools.cache
def rendered(overlay: str) -> tuple[Object, ...]:
    """The objects of `kubectl kustomize deploy/k8s/overlays/<overlay>`."""
    assert KUBECTL is not None
    done = subprocess.run(
        [KUBECTL, "kustomize", str(ROOT / "deploy" / "k8s" / "overlays" / overlay)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # warnings, of what is deprecated
    return tuple(yaml.safe_load_all(done.stdout))


def of_kind(overlay: str, *kinds: str) -> list[Object]:
    return [each for each in rendered(overlay) if each["kind"] in kinds]


def named(overlay: str, kind: str, name: str) -> Object:
    (found,) = [each for each in of_kind(overlay, kind) if each["metadata"]["name"] == name]
    return found


def workloads(overlay: str) -> Iterator[tuple[str, Object]]:
    """Every object that makes pods, by name, with its pod template."""
    for each in of_kind(overlay, "Deployment", "StatefulSet", "Job"):
        yield each["metadata"]["name"], each["spec"]["template"]


def service_pod(overlay: str, service: str) -> Object:
    pod: Object = named(overlay, "Deployment", service)["spec"]["template"]["spec"]
    return pod


def migrations_job(overlay: str) -> Object:
    (job,) = of_kind(overlay, "Job")
    return job


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector (or a Service's plain one) takes something with these labels."""
    plain = selector.get("matchLabels", {} if "matchExpressions" in selector else selector)
    if any(labels.get(key) != value for key, value in plain.items()):
        return False
    for wanted in selector.get("matchExpressions", ()):
        assert wanted["operator"] == "In"
        if labels.get(wanted["key"]) not in wanted["values"]:
            return False
    return True


def environment(overlay: str, pod: Object) -> dict[str, str]:
    """What the pod's container finds set; a Secret's value is its name and key."""
    (container,) = pod["containers"]
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        found |= named(overlay, "ConfigMap", source["configMapRef"]["name"])["data"]
    for entry in container.get("env", ()):
        if "value" in entry:
            found[entry["name"]] = entry["value"]
        else:
            reference = entry["valueFrom"]["secretKeyRef"]
            found[entry["name"]] = f"{reference['name']}/{reference['key']}"
    return found
