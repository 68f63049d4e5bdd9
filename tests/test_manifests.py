"""Dockerfiles, the compose file and the Kubernetes manifests: what can be checked without running them."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click import Context

from service.cli import cli
from service.settings import Settings
from worker.launch.kubernetes.objects import PEERS_LABEL

yaml = pytest.importorskip("yaml", reason="PyYAML comes with yamllint, a development dependency")

TOP = Path(__file__).parents[1]
DOCKERFILES = sorted((TOP / "docker").glob("*.Dockerfile"))
COMPOSE = yaml.safe_load((TOP / "docker/compose.yaml").read_text())
BASE = sorted(path for path in (TOP / "k8s/base").glob("*.yaml") if path.name != "kustomization.yaml")
OVERLAYS = ["cpu-demo", "gpu", "multi-node"]
COMPONENTS = ["keda", "kueue"]
KUBERNETES = ["1.34", "1.36"]
# Of operators that a cluster may have; Kubernetes' own schemas do not know them.
FOREIGN = {"ScaledObject", "LocalQueue"}
OURS = re.compile(r"^clipwatch-(api|worker)(:|$)")
COMMANDS = cli.list_commands(Context(cli))
VARIABLES = {f"CLIPWATCH_{name.upper()}" for name in Settings.model_fields}


def tool(name: str) -> str:
    """A command of the environment that runs the tests, or of the machine."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    return found or pytest.skip(f"{name} is not installed")


@cache
def rendered(folder: str | Path) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send; `folder` is an overlay or has a kustomization."""
    command = [tool("kubectl"), "kustomize", str(TOP / "k8s/overlays" / folder)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return list(yaml.safe_load_all(output))


def base_documents() -> list[dict[str, Any]]:
    return [document for path in BASE for document in yaml.safe_load_all(path.read_text())]


def pods(documents: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every (pod, container) of the documents."""
    for document in documents:
        if document["kind"] in ("Deployment", "Job"):
            pod = document["spec"]["template"]["spec"]
            yield from ((pod, container) for container in [*pod.get("initContainers", []), *pod["containers"]])


def named(documents: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = [d for d in documents if (d["kind"], d["metadata"]["name"]) == (kind, name)]
    return found


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_have_no_lint(path: Path) -> None:
    result = subprocess.run([tool("hadolint"), str(path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_run_what_exists_as_nobody_special(path: Path) -> None:
    text = path.read_text()
    assert not text.startswith("# syntax"), "needs an image registry"
    assert re.search(r"^ARG BASE=\S+\nFROM \$\{BASE\}$", text, re.M)
    assert re.findall(r"^USER (\S+)", text, re.M)[-1] == "10001:10001"
    (command,) = re.findall(r'^CMD \["clipwatch", "(\w+)"\]', text, re.M)
    assert command in COMMANDS
    assert set(re.findall(r"\b(CLIPWATCH_\w+)=", text)) <= VARIABLES
    ignored = (path.parent / f"{path.name}.dockerignore").read_text()
    sent = {line.removeprefix("!") for line in ignored.splitlines() if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for name in line.split()}
    assert copied == sent
    assert all((TOP / name).exists() for name in copied)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_build_our_own_packages_from_the_checkout(path: Path) -> None:
    """No index has them: the requirements leave them out, and pip gets their folders."""
    text = path.read_text().replace("\\\n", "")
    (program,) = re.findall(r'python3 -c "(.*?)" >', text)
    # In double quotes a shell keeps a backslash before n.
    listing = [sys.executable, "-c", program]
    listed = subprocess.run(listing, cwd=TOP, check=True, capture_output=True, text=True).stdout.splitlines()
    assert "sqlalchemy>=2.0.30" in listed
    assert not [name for name in listed if re.match("clipwatch|flash-clipping", name)]
    (folders,) = re.findall(r"pip install --no-cache-dir --no-deps (.+)$", text, re.M)
    assert folders.split() == (["./flash_clipping", "."] if any("torch" in name for name in listed) else ["."])


def test_yaml_has_no_lint() -> None:
    command = [tool("yamllint"), "--strict", "compose.yaml", "docker", "k8s", ".github", ".pre-commit-config.yaml"]
    result = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_compose_services_wait_run_and_are_set_up_right() -> None:
    services = COMPOSE["services"]
    for name in ("migrate", "api", "beat", "worker-cpu", "worker-gpu"):
        service = services[name]
        assert service["command"][0] == "clipwatch"
        assert service["command"][1] in COMMANDS
        assert set(service["environment"]) <= VARIABLES
        assert {"CLIPWATCH_DATABASE_URL", "CLIPWATCH_BROKER_URL"} <= set(service["environment"])
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
    for service in services.values():
        for other, how in service.get("depends_on", {}).items():
            assert how["condition"] != "service_healthy" or "healthcheck" in services[other]
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in COMPOSE["volumes"]
        if "build" in service:
            assert (TOP / service["build"]["dockerfile"]).exists()
    assert services["worker-cpu"]["profiles"] == ["cpu"]
    assert services["worker-gpu"]["profiles"] == ["gpu"]


def test_compose_in_the_top_folder_starts_a_worker_that_exists() -> None:
    top = yaml.safe_load((TOP / "compose.yaml").read_text())
    assert top["include"] == ["docker/compose.yaml"]
    assert top["name"] == COMPOSE["name"]
    (profile,) = re.findall(r"^COMPOSE_PROFILES=(\w+)$", (TOP / ".env").read_text(), re.M)
    assert profile in {name for service in COMPOSE["services"].values() for name in service.get("profiles", [])}


def test_compose_has_passwords_in_files_and_databases_within() -> None:
    for name, service in COMPOSE["services"].items():
        for variable, value in service.get("environment", {}).items():
            assert "PASSWORD" not in variable or variable.endswith("_FILE")
            assert not re.search(r"//[^/@]*:[^/@]*@", value)
        if name in ("postgres", "redis"):
            assert service["networks"] == ["data"]
            assert "ports" not in service
        if "ports" in service:
            assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert COMPOSE["networks"]["data"] == {"internal": True}


@pytest.mark.parametrize("version", KUBERNETES)
def test_base_documents_fit_the_schemas(version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="a development dependency")
    for document in base_documents():
        validator.validate(document, version, strict=True)


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_render_and_fit_the_schemas(overlay: str, version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="a development dependency")
    documents = rendered(overlay)
    for document in documents:
        validator.validate(document, version, strict=True)
    check_containers(documents)


def test_the_gpu_overlay_asks_for_gpus_and_the_demo_does_not() -> None:
    asked = {
        overlay: [
            [container["resources"][kind].get("nvidia.com/gpu") for kind in ("requests", "limits")]
            for _, container in pods(rendered(overlay))
            if container["name"] == "worker"
        ]
        for overlay in OVERLAYS
    }
    assert asked == {"cpu-demo": [[None, None]], "gpu": [[2, 2]], "multi-node": [[None, None]]}


@pytest.mark.parametrize("component", COMPONENTS)
def test_components_fit_the_overlay_of_several_nodes(component: str, tmp_path: Path) -> None:
    above = os.path.relpath(TOP / "k8s", tmp_path)
    used = {"resources": [f"{above}/overlays/multi-node"], "components": [f"{above}/components/{component}"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(used))
    documents = rendered(tmp_path)
    validator = pytest.importorskip("kubernetes_validate", reason="a development dependency")
    for document in documents:
        if document["kind"] not in FOREIGN:
            validator.validate(document, KUBERNETES[0], strict=True)
    check_containers(documents)
    if component == "keda":
        assert "replicas" not in named(documents, "Deployment", "worker")["spec"]
        assert named(documents, "ScaledObject", "worker")["spec"]["scaleTargetRef"] == {"name": "worker"}
    else:
        queue = named(documents, "ConfigMap", "clipwatch")["data"]["CLIPWATCH_KUBERNETES_QUEUE"]
        assert named(documents, "LocalQueue", queue)


def test_workers_may_create_arms_and_arms_may_do_nothing() -> None:
    documents = rendered("multi-node")
    bound = [
        (d["roleRef"]["name"], [s["name"] for s in d["subjects"]]) for d in documents if d["kind"] == "RoleBinding"
    ]
    assert bound == [("worker", ["worker"])]
    assert not [d for d in documents if d["kind"].startswith("Cluster")]
    tokens = {
        d["metadata"]["name"]: d["automountServiceAccountToken"] for d in documents if d["kind"] == "ServiceAccount"
    }
    assert tokens == {"service": False, "worker": False, "arm": False}
    data = named(documents, "ConfigMap", "clipwatch")["data"]
    worker = named(documents, "Deployment", "worker")["spec"]["template"]["spec"]
    assert data["CLIPWATCH_KUBERNETES_IMAGE"] == worker["containers"][0]["image"]
    named(documents, "PersistentVolumeClaim", data["CLIPWATCH_KUBERNETES_CLAIM"])


def test_network_policies_deny_what_they_do_not_name() -> None:
    documents = rendered("multi-node")
    policies = [d["spec"] for d in documents if d["kind"] == "NetworkPolicy"]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in policies
    arms = named(documents, "NetworkPolicy", "arm")["spec"]
    peers = [{"podSelector": {"matchLabels": {PEERS_LABEL: "true"}}}]
    assert arms["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "arm", PEERS_LABEL: "true"}
    assert [rule["from"] for rule in arms["ingress"]] == [peers]
    others = [rule for rule in arms["egress"] if rule["to"] != peers]
    assert [[port["port"] for port in rule["ports"]] for rule in others] == [[53, 53]]


def test_base_containers_are_hardened_and_set_up_right() -> None:
    check_containers(base_documents())


def check_containers(documents: list[dict[str, Any]]) -> None:
    maps = {document["metadata"]["name"]: document for document in documents if document["kind"] == "ConfigMap"}
    names = {(document["kind"], document["metadata"]["name"]) for document in documents}
    assert set(maps["clipwatch"]["data"]) <= VARIABLES
    commands = set()
    for pod, container in pods(documents):
        assert pod["securityContext"]["runAsNonRoot"]
        # Only who creates arms speaks to the API server.
        creates = any(
            each["name"] == "CLIPWATCH_KUBERNETES_POD_UID" for c in pod["containers"] for each in c.get("env", [])
        )
        assert pod["automountServiceAccountToken"] is creates
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert set(container["resources"]["requests"]) >= {"cpu", "memory"}
        assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}
        for volume in pod["volumes"]:
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in names
        if OURS.match(container["image"]):
            program, command, *_ = container["args"]
            assert program == "clipwatch"
            assert command in COMMANDS
            commands.add(command)
            assert [source["configMapRef"]["name"] for source in container["envFrom"][:1]] == ["clipwatch"]
            assert {each["name"] for each in container.get("env", [])} <= VARIABLES
            assert container["securityContext"]["readOnlyRootFilesystem"]
    assert commands == {"api", "beat", "migrate", "worker"}
