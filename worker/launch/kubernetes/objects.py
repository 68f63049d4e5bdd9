"""Builds the documents of an arm's objects, which are sent to the API server."""

import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from service.contract import Device
from service.settings import Settings
from worker.launch.environment import rank_environment
from worker.launch.kubernetes.derived import conductor_name, deadline_seconds, disk_bytes, rank_memory_bytes
from worker.launch.protocol import ARM_MOUNT, SOURCE_MOUNT
from worker.launch.rendezvous import SINGLE_NODE, network_interface

Document = dict[str, Any]

NAME_LABEL, ARM_LABEL, CONDUCTOR_LABEL = "app.kubernetes.io/name", "clipwatch.dev/arm", "clipwatch.dev/conductor"
PEERS_LABEL, DIGEST_ANNOTATION = "clipwatch.dev/peers", "clipwatch.dev/digest"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
TOPOLOGY_ANNOTATION = "alpha.jobset.sigs.k8s.io/exclusive-topology"
INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"

SHM = 8 * 2**30
PORT = 29400
USER = 10001
# Without any right: an arm has no business with the API server.
SERVICE_ACCOUNT = "arm"
# How long the cluster keeps the objects of an ended arm whose conductor has not deleted them.
KEEP_SECONDS = 3600
# The name of an arm's only replicated job, which is JobSet's term for a set of equal pods.
NODE = "node"
# How long pods have to end by themselves.
GRACE_SECONDS = 5


@dataclass(frozen=True)
class ArmJob:
    """One arm for the cluster: `nodes` pods of `ranks` ranks each.

    `subpath` is its folder on the shared volume: the arm writes into `out` in it, and `source` in it holds its Opacus
    if it `has_source`. `digest` differs from that of any other arm of the same name.
    """

    name: str
    nodes: int
    ranks: int
    gpu: bool
    subpath: str
    has_source: bool
    digest: str


def arm_name(conductor: str, folder: Path) -> str:
    """The name of the arm of `folder`, at most 40 characters. It is the same each time and differs between arms.

    The host names of pods contain it, and DNS allows them 63 characters.
    """
    role = re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-")[:20].strip("-")
    digest = sha256(f"{conductor}\0{folder}".encode()).hexdigest()[:12]
    return f"arm-{role}-{digest}" if role else f"arm-{digest}"


def job_set(job: ArmJob, settings: Settings) -> Document:
    """The JobSet of an arm. JobSet makes the headless Service and the Job of it. A failure is never retried."""
    annotations = {TOPOLOGY_ANNOTATION: settings.kubernetes_topology} if settings.kubernetes_topology else {}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _metadata(job, settings, annotations),
        "spec": {
            "ttlSecondsAfterFinished": KEEP_SECONDS,
            "failurePolicy": {"maxRestarts": 0},
            "successPolicy": {"operator": "All"},
            "network": {"enableDNSHostnames": True, "subdomain": job.name, "publishNotReadyAddresses": True},
            "replicatedJobs": [
                {
                    "name": NODE,
                    "replicas": 1,
                    "template": {
                        "metadata": {"labels": _labels(job, settings)},
                        "spec": _job_spec(job, settings, f"{job.name}-{NODE}-0-0.{job.name}"),
                    },
                }
            ],
        },
    }


def indexed_job(job: ArmJob, settings: Settings) -> Document:
    """The Job of an arm, for a cluster without JobSet. `headless_service` gives its pods host names."""
    spec = _job_spec(job, settings, f"{job.name}-0.{job.name}")
    spec["template"]["spec"]["subdomain"] = job.name
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(job, settings, {}),
        "spec": spec | {"ttlSecondsAfterFinished": KEEP_SECONDS},
    }


def headless_service(job: ArmJob, settings: Settings, job_uid: str) -> Document:
    """The Service that gives the pods of an Indexed Job host names. It is deleted with the Job of `job_uid`."""
    metadata = _metadata(job, settings, {})
    metadata["ownerReferences"] = [{"apiVersion": "batch/v1", "kind": "Job", "name": job.name, "uid": job_uid}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {ARM_LABEL: job.name},
            "ports": [{"name": "rendezvous", "port": PORT}],
        },
    }


def _metadata(job: ArmJob, settings: Settings, annotations: dict[str, str]) -> Document:
    queue = {QUEUE_LABEL: settings.kubernetes_queue} if settings.kubernetes_queue else {}
    metadata: Document = {
        "name": job.name,
        "namespace": settings.kubernetes_namespace,
        "labels": _labels(job, settings) | queue,
        "annotations": {DIGEST_ANNOTATION: job.digest} | annotations,
    }
    if settings.kubernetes_pod_uid:
        owner = {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": conductor_name(settings),
            "uid": settings.kubernetes_pod_uid,
        }
        metadata["ownerReferences"] = [owner]
    return metadata


def _labels(job: ArmJob, settings: Settings) -> dict[str, str]:
    own = {
        NAME_LABEL: "arm",
        "app.kubernetes.io/part-of": "clipwatch",
        ARM_LABEL: job.name,
        CONDUCTOR_LABEL: conductor_name(settings),
    }
    # The network policy lets only the pods with this label communicate.
    return own | ({PEERS_LABEL: "true"} if job.nodes > 1 else {})


def _job_spec(job: ArmJob, settings: Settings, master: str) -> Document:
    return {
        "completionMode": "Indexed",
        "completions": job.nodes,
        "parallelism": job.nodes,
        "backoffLimit": 0,
        "activeDeadlineSeconds": deadline_seconds(settings),
        "template": {"metadata": {"labels": _labels(job, settings)}, "spec": _pod_spec(job, settings, master)},
    }


def _pod_spec(job: ArmJob, settings: Settings, master: str) -> Document:
    sources = [_mount("claim", SOURCE_MOUNT, subPath=f"{job.subpath}/source", readOnly=True)] if job.has_source else []
    command = [
        "python",
        "-m",
        "worker.launch.kubernetes.entrypoint",
        "--nodes",
        str(job.nodes),
        "--ranks",
        str(job.ranks),
    ]
    command += ["--master", f"{master}:{PORT}", "--id", job.name, "--folder", str(ARM_MOUNT)]
    spec: Document = {
        "restartPolicy": "Never",
        "serviceAccountName": SERVICE_ACCOUNT,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "arm",
                "image": settings.kubernetes_image,
                # The entry point of the image stays: it reaps the orphans of torchrun.
                "args": command,
                "workingDir": str(ARM_MOUNT),
                "env": _environment(job, settings),
                "resources": _resources(job, settings),
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [
                    _mount("claim", ARM_MOUNT, subPath=f"{job.subpath}/out"),
                    *sources,
                    _mount("shm", Path("/dev/shm")),
                    _mount("tmp", Path("/tmp")),
                ],
            }
        ],
        "volumes": [
            {"name": "claim", "persistentVolumeClaim": {"claimName": settings.kubernetes_claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": str(SHM)}},
            {"name": "tmp", "emptyDir": {"sizeLimit": str(disk_bytes(settings))}},
        ],
    }
    if job.nodes > 1:
        apart = {"labelSelector": {"matchLabels": {ARM_LABEL: job.name}}, "topologyKey": "kubernetes.io/hostname"}
        spec["affinity"] = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}}
    if job.gpu:
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return spec


def _mount(volume: str, path: Path, **options: object) -> Document:
    return {"name": volume, "mountPath": str(path), **options}


def _environment(job: ArmJob, settings: Settings) -> list[Document]:
    device = Device.CUDA if job.gpu else Device.CPU
    interface = SINGLE_NODE.environment if job.nodes == 1 else network_interface(settings.kubernetes_interface)
    plain = {"HOME": "/tmp", "TMPDIR": "/tmp", "TRITON_CACHE_DIR": "/tmp/triton"}
    plain |= rank_environment(settings.kubernetes_cpus, device, job.nodes, interface)
    if job.has_source:
        plain["PYTHONPATH"] = str(SOURCE_MOUNT)
    index = {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX_ANNOTATION}']"}}
    return [{"name": name, "value": value} for name, value in plain.items()] + [
        {"name": "NODE_RANK", "valueFrom": index}
    ]


def _resources(job: ArmJob, settings: Settings) -> Document:
    memory = str(job.ranks * rank_memory_bytes(settings) + SHM)
    gpus = {"nvidia.com/gpu": str(job.ranks)} if job.gpu else {}
    return {
        "requests": {"cpu": str(job.ranks * settings.kubernetes_cpus), "memory": memory, **gpus},
        # The memory limit equals the request, so that an arm is never evicted because of what other pods use.
        "limits": {"memory": memory, **gpus},
    }
