"""deploy/k8s as it is rendered: valid for Kubernetes 1.34, restricted, in agreement with itself and with the code."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from migrations import settings as migration_settings
from migrations import topics as migration_topics
from services.runtime import auth, health
from services.runtime.config import dlq_config, issuer_config, ledger_config
from services.runtime.kafka import Topics
from services.runtime.schema import REVISION
from tests.deploy.manifests import (
    IMAGE,
    KUBECTL,
    NAMESPACE,
    OVERLAYS,
    ROOT,
    SERVICES,
    Object,
    environment,
    matches,
    migrations_job,
    named,
    of_kind,
    rendered,
    service_pod,
    workloads,
)

pytestmark = [
    pytest.mark.skipif(KUBECTL is None, reason="there is no kubectl: NOTHING of deploy/k8s was checked"),
    pytest.mark.parametrize("overlay", OVERLAYS),
]

KUBERNETES = "1.34"
PLAIN_GROUPS = ("", "apps", "autoscaling", "batch", "networking.k8s.io", "policy")
OPERATORS = ("kafka.strimzi.io", "postgresql.cnpg.io", "keda.sh", "monitoring.coreos.com", "cert-manager.io")
CLUSTER_WIDE = ("Namespace",)
SPARE_S = 10

# Who serves what, as the README says: main, health, metrics.
PORTS: Mapping[str, Mapping[str, int]] = {
    "issuer": {"grpc": 50051, "health": 50061, "metrics": 9464},
    "ledger": {"health": 50052, "metrics": 9465},
    "dlq": {"grpc": 50053, "health": 50063, "metrics": 9466},
}
READERS: Mapping[str, Callable[[Mapping[str, str]], Any]] = {
    "issuer": issuer_config,
    "ledger": ledger_config,
    "dlq": dlq_config,
}
# Variables that the driver of PostgreSQL and OpenTelemetry read themselves.
FOREIGN = re.compile(r"PGPASSWORD|PGSSLMODE|PGSSLROOTCERT|OTEL_[A-Z_]+")


def group(each: Object) -> str:
    first, slash, _ = str(each["apiVersion"]).partition("/")
    return first if slash else ""


def test_every_object_is_valid_for_the_kubernetes_version(overlay: str) -> None:
    for each in rendered(overlay):
        if group(each) in PLAIN_GROUPS:
            kubernetes_validate.validate(each, KUBERNETES, strict=True)
        else:
            assert group(each) in OPERATORS, each["apiVersion"]
            assert overlay == "prod"


def test_every_object_is_in_our_namespace_which_is_restricted(overlay: str) -> None:
    for each in rendered(overlay):
        if each["kind"] not in CLUSTER_WIDE:
            assert each["metadata"]["namespace"] == NAMESPACE
    labels = named(overlay, "Namespace", NAMESPACE)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_every_container_is_restricted(overlay: str) -> None:
    seen = 0
    for name, template in workloads(overlay):
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["enableServiceLinks"] is False, name
        named(overlay, "ServiceAccount", pod["serviceAccountName"])
        assert not any(pod.get(field) for field in ("hostNetwork", "hostPID", "hostIPC")), name
        allowed = {"name", "emptyDir", "secret", "projected", "configMap"}
        assert all(set(volume) <= allowed for volume in pod.get("volumes", ())), name
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            seen += 1
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert not {"privileged", "runAsUser", "runAsNonRoot", "seccompProfile"} & set(own)
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]
            assert not any("hostPort" in port for port in container.get("ports", ()))
            if container["image"] == IMAGE:
                assert own["readOnlyRootFilesystem"] is True
                assert security["runAsUser"] == security["runAsGroup"] == 10001
    assert seen == {"dev": 6, "prod": 4}[overlay]


def test_every_service_has_pods_that_listen(overlay: str) -> None:
    services = of_kind(overlay, "Service")
    assert {"issuer", "dlq"} <= {each["metadata"]["name"] for each in services}
    for each in services:
        assert each["spec"]["clusterIP"] == "None"
        (template,) = [t for _, t in workloads(overlay) if matches(each["spec"]["selector"], t["metadata"]["labels"])]
        listening = {p["name"]: p["containerPort"] for c in template["spec"]["containers"] for p in c["ports"]}
        for port in each["spec"]["ports"]:
            assert listening[port["targetPort"]] == port["port"]


def test_every_secret_and_configmap_that_is_named_exists(overlay: str) -> None:
    there = {kind: {o["metadata"]["name"] for o in of_kind(overlay, kind)} for kind in ("Secret", "ConfigMap")}
    there["Secret"] |= {*_made_by_operators(overlay), *(_made_by_hand() if overlay == "prod" else ())}
    named_somewhere = set()
    for name, template in workloads(overlay):
        for kind, wanted in _references(template["spec"]):
            named_somewhere.add(wanted)
            assert wanted in there[kind], f"{name} names the {kind} {wanted}"
    assert {"callers", "postgres-issuer"} <= named_somewhere


def _references(pod: Any) -> Iterator[tuple[str, str]]:
    """Kind and name of what the pod takes variables and files from."""
    if isinstance(pod, list):
        for each in pod:
            yield from _references(each)
    elif isinstance(pod, dict):
        for key, value in pod.items():
            if key in ("secretKeyRef", "secretRef") or (key == "secret" and "name" in value):
                yield "Secret", value["name"]
            elif key in ("configMapKeyRef", "configMapRef", "configMap"):
                yield "ConfigMap", value["name"]
            elif key == "secret":
                yield "Secret", value["secretName"]
            else:
                yield from _references(value)


def _made_by_operators(overlay: str) -> Iterator[str]:
    for each in rendered(overlay):
        name = each["metadata"]["name"]
        match group(each), each["kind"]:
            case "kafka.strimzi.io", "Kafka":
                yield f"{name}-cluster-ca-cert"
            case "kafka.strimzi.io", "KafkaUser":
                yield name
            case "postgresql.cnpg.io", "Cluster":
                yield f"{name}-ca"
            case "cert-manager.io", "Certificate":
                yield each["spec"]["secretName"]


def _made_by_hand() -> list[str]:
    return re.findall(r"create secret generic ([a-z-]+)", (ROOT / "docs" / "deploy.md").read_text())


class Asked(dict[str, str]):
    """An environment that remembers which of its variables were read."""

    def __init__(self, values: Mapping[str, str]) -> None:
        super().__init__(values)
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)


@pytest.mark.parametrize("service", SERVICES)
def test_every_variable_of_a_service_is_a_setting_and_all_together_start_it(
    overlay: str, service: str, tmp_path: Path
) -> None:
    pod = service_pod(overlay, service)
    found = environment(overlay, pod)
    files = {name: value for name, value in found.items() if value.startswith("/etc/firstcome/")}
    assert all(_mounted(pod, path) for path in files.values())
    if "FIRSTCOME_TOKENS" in files:
        (tmp_path / "callers").write_text(_callers())
        found["FIRSTCOME_TOKENS"] = str(tmp_path / "callers")
    certificates = {name for name in files if "_TLS_" in name}
    started = {name: value for name, value in found.items() if name not in certificates}
    if certificates and service != "ledger":
        started["FIRSTCOME_TLS"] = "off"  # instead of the certificates, which are not made here
    asked = Asked(started)
    config = READERS[service](asked)
    unknown = {name for name in found if name not in asked.names and not FOREIGN.fullmatch(name)}
    assert not unknown
    assert found["PGPASSWORD"] == f"postgres-{service}/password"
    assert config.common.postgres_dsn.startswith(f"postgresql://firstcome_{service}@")
    assert (overlay == "prod") == (found.get("FIRSTCOME_KAFKA_TLS_KEY") == "/etc/firstcome/kafka/user.key")
    if service != "ledger":
        assert (found.get("FIRSTCOME_TLS") == "off") == (overlay == "dev")
        assert (overlay == "prod") == ("FIRSTCOME_TLS_CLIENT_CA" in found)


def test_the_migrations_variables_are_settings_and_agree_with_the_services(overlay: str) -> None:
    pod = migrations_job(overlay)["spec"]["template"]["spec"]
    found = environment(overlay, pod)
    certificates = {name for name, value in found.items() if value.startswith("/etc/firstcome/kafka/")}
    asked = Asked({name: value for name, value in found.items() if name not in certificates})
    settings = migration_settings.read_settings(asked)
    assert not {name for name in found if name not in asked.names and not FOREIGN.fullmatch(name)}
    service = environment(overlay, service_pod(overlay, "ledger"))
    shared = ("FIRSTCOME_KAFKA_BOOTSTRAP", *certificates, "FIRSTCOME_TOPIC_PREFIX", "PGSSLMODE", "PGSSLROOTCERT")
    assert {name: found.get(name) for name in shared} == {name: service.get(name) for name in shared}
    assert settings.roles is not None
    assert f"postgresql://{settings.roles.prefix}ledger@" in service["FIRSTCOME_POSTGRES_DSN"]
    assert (overlay == "dev") == (settings.replication == 1)


def _mounted(pod: Object, path: str) -> bool:
    """Whether a volume brings this file."""
    folder, _, file = path.rpartition("/")
    (container,) = pod["containers"]
    names = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == folder]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] in names]
    sources = [volume["secret"]] if "secret" in volume else [each["secret"] for each in volume["projected"]["sources"]]
    items = [item["path"] for source in sources for item in source.get("items", ())]
    return not items or file in items


def _callers() -> str:
    return base64.b64decode(named("dev", "Secret", "callers")["data"]["callers"]).decode()


def test_the_migrations_job_is_named_by_the_revision(overlay: str) -> None:
    """Each revision needs a Job of its own: rename the one in deploy/k8s/base/migrations.yaml."""
    assert migrations_job(overlay)["metadata"]["name"] == f"migrations-{REVISION}"


@pytest.mark.parametrize("service", SERVICES)
def test_ports_and_probes_are_those_that_the_service_serves(overlay: str, service: str) -> None:
    pod = service_pod(overlay, service)
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == PORTS[service]
    found = environment(overlay, pod)
    assert found["FIRSTCOME_HEALTH_LISTEN"] == f"0.0.0.0:{ports['health']}"
    assert found["FIRSTCOME_METRICS_LISTEN"] == f"0.0.0.0:{ports['metrics']}"
    assert found.get("FIRSTCOME_LISTEN") == (f"0.0.0.0:{ports['grpc']}" if "grpc" in ports else None)
    assert container["args"] == [f"services.{service}"]
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[kind]["grpc"]["port"] == ports["health"]
    # Liveness must not depend on Kafka or PostgreSQL; readiness is the service's own word.
    assert container["livenessProbe"]["grpc"]["service"] == health.PROCESS
    assert container["startupProbe"]["grpc"]["service"] == health.PROCESS
    assert not container["readinessProbe"]["grpc"].get("service")


@pytest.mark.parametrize("service", SERVICES)
def test_there_is_time_to_drain(overlay: str, service: str) -> None:
    pod = service_pod(overlay, service)
    (container,) = pod["containers"]
    drain_s = READERS["ledger"](
        {"FIRSTCOME_KAFKA_BOOTSTRAP": "a:1", "FIRSTCOME_POSTGRES_DSN": "postgresql://a/b"}
        | {name: value for name, value in environment(overlay, pod).items() if name == "FIRSTCOME_DRAIN_TIMEOUT_S"}
    ).common.drain_timeout_s
    before_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= before_s + 2 * drain_s + SPARE_S


@pytest.mark.parametrize("service", SERVICES)
def test_a_rollout_or_a_drained_node_leaves_somebody_at_work(overlay: str, service: str) -> None:
    deployment = named(overlay, "Deployment", service)["spec"]
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    budget = named(overlay, "PodDisruptionBudget", service)["spec"]
    assert budget["maxUnavailable"] == 1
    assert matches(budget["selector"], deployment["template"]["metadata"]["labels"])
    for spread in deployment["template"]["spec"]["topologySpreadConstraints"]:
        assert matches(spread["labelSelector"], deployment["template"]["metadata"]["labels"])
    scaled = {
        each["spec"]["scaleTargetRef"]["name"]: each["spec"].get("minReplicas", each["spec"].get("minReplicaCount"))
        for each in of_kind(overlay, "HorizontalPodAutoscaler", "ScaledObject")
    }
    # Who is scaled by something must not be set back by each apply.
    assert ("replicas" in deployment) == (service not in scaled)
    assert deployment.get("replicas", scaled.get(service)) >= 2


def test_nothing_is_reached_but_what_is_said(overlay: str) -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in of_kind(overlay, "NetworkPolicy")}
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    pods = dict(workloads(overlay))
    job = f"migrations-{REVISION}"
    for name, policy in policies.items():
        chosen = [t for t in pods.values() if matches(policy["podSelector"], t["metadata"]["labels"])]
        operated = {"strimzi.io/cluster", "cnpg.io/cluster"} & set(policy["podSelector"].get("matchLabels", {}))
        assert chosen or operated, f"{name} is for nobody"
        ports = {p["name"] for t in chosen for c in t["spec"]["containers"] for p in c.get("ports", ())}
        for rule in policy.get("ingress", ()):
            for port in rule.get("ports", ()):
                assert isinstance(port["port"], int) or port["port"] in ports, f"{name}: {port['port']}"
    engines = {"dev": {"kafka", "postgres"}, "prod": set()}[overlay]
    for client in (*SERVICES, job):
        open_to = {
            port["port"]
            for policy in policies.values()
            if matches(policy["podSelector"], pods[client]["metadata"]["labels"])
            for rule in policy.get("egress", ())
            for port in rule.get("ports", ())
        }
        assert {53, 5432, 9092, 9093} <= open_to, client
        for engine in engines:
            entry = policies[engine]["ingress"][0]["from"][0]["podSelector"]
            assert matches(entry, pods[client]["metadata"]["labels"]), f"{client} can't reach {engine}"


def test_topics_that_strimzi_makes_are_those_that_the_migrations_make(overlay: str) -> None:
    if overlay == "dev":
        assert not of_kind(overlay, "KafkaTopic")
        return
    made = {each["metadata"]["name"]: each["spec"] for each in of_kind(overlay, "KafkaTopic")}
    wanted = migration_topics.settings(Topics(), 3)
    assert {name: spec["config"] for name, spec in made.items()} == wanted
    assert {(spec["partitions"], spec["replicas"]) for spec in made.values()} == {(12, 3)}


def test_rules_and_dashboards_are_those_of_the_code(overlay: str) -> None:
    if overlay == "dev":
        assert not of_kind(overlay, "PrometheusRule")
        return
    rules = ROOT / "deploy" / "observability" / "rules"
    groups = [group for path in sorted(rules.glob("*.yaml")) for group in yaml.safe_load(path.read_text())["groups"]]
    assert named(overlay, "PrometheusRule", "firstcome")["spec"]["groups"] == groups, "run make dashboards"
    shown = named(overlay, "ConfigMap", "dashboards")["data"]
    dashboards = (ROOT / "deploy" / "observability" / "dashboards").glob("*.json")
    assert shown == {path.name: path.read_text() for path in dashboards}


def test_the_token_for_trying_is_the_one_of_the_guide(overlay: str, tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "deploy.md").read_text()
    (token,) = set(re.findall(r"\bfc_[A-Za-z0-9_-]{20,}", guide))
    (tmp_path / "callers").write_text(_callers())
    assert auth.hash_of(token).hex() in _callers()
    assert len(auth.load_callers(str(tmp_path / "callers"))) == 1
    assert (overlay == "dev") == bool(of_kind(overlay, "Secret")), "no Secret but for trying is in the repository"


def test_the_base_is_plain_kubernetes_and_every_image_is_set_in_one_place(overlay: str) -> None:
    base = ROOT / "deploy" / "k8s" / "base"
    for path in sorted(base.glob("*.yaml")):
        for each in yaml.safe_load_all(path.read_text()):
            assert group(each) in (*PLAIN_GROUPS, "kustomize.config.k8s.io"), path
    overlays = yaml.safe_load((ROOT / "deploy" / "k8s" / "overlays" / overlay / "kustomization.yaml").read_text())
    images = {f"{image['name']}:{image['newTag']}" for image in overlays["images"]}
    assert images == {c["image"] for _, template in workloads(overlay) for c in template["spec"]["containers"]}
