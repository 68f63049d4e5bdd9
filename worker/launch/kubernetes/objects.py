"""The objects of an arm, as the documents that are sent to the API server."""

import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from worker.launch.kubernetes.options import ClusterOptions

Document = dict[str, Any]

NAME, ARM, CONDUCTOR = "app.kubernetes.io/name", "clipwatch.dev/arm", "clipwatch.dev/conductor"
PEERS, DIGEST = "clipwatch.dev/peers", "clipwatch.dev/digest"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
TOPOLOGY = "alpha.jobset.sigs.k8s.io/exclusive-topology"
INDEX = "batch.kubernetes.io/job-completion-index"

# Where the two folders of an arm are in its pods.
FOLDER, SOURCE = Path("/arm"), Path("/opacus")
SHM = 8 * 2**30
PORT = 29400
USER = 10001
# JobSet calls a set of like pods a replicated job; an arm has one.
NODE = "node"
# What pods get to end by themselves.
GRACE_SECONDS = 5


@dataclass(frozen=True)
class ArmJob:
    """One arm for the cluster: `nodes` pods of `ranks` ranks each.

    `subpath` is its folder below the root of the volume: `out` in it is written by the arm, `source`, if it
    `has_source`, holds its Opacus. `digest` tells it from another arm of the same name.
    """

    name: str
    nodes: int
    ranks: int
    gpu: bool
    subpath: str
    has_source: bool
    digest: str


def name_of(conductor: str, folder: Path) -> str:
    """A name for the arm of `folder`, at most 40 characters: the same each time, another one for any other arm.

    Pods' host names are made of it, which DNS allows 63 characters.
    """
    role = re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-")[:20].strip("-")
    digest = sha256(f"{conductor}\0{folder}".encode()).hexdigest()[:12]
    return f"arm-{role}-{digest}" if role else f"arm-{digest}"


def job_set(job: ArmJob, options: ClusterOptions) -> Document:
    """The JobSet: its controller makes the headless Service and the Job. A failure is never retried in the cluster."""
    annotations = {TOPOLOGY: options.topology} if options.topology else {}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _metadata(job, options, annotations),
        "spec": {
            "ttlSecondsAfterFinished": options.keep_seconds,
            "failurePolicy": {"maxRestarts": 0},
            "successPolicy": {"operator": "All"},
            "network": {"enableDNSHostnames": True, "subdomain": job.name, "publishNotReadyAddresses": True},
            "replicatedJobs": [
                {
                    "name": NODE,
                    "replicas": 1,
                    "template": {
                        "metadata": {"labels": _labels(job, options)},
                        "spec": _job_spec(job, options, f"{job.name}-{NODE}-0-0.{job.name}"),
                    },
                }
            ],
        },
    }


def indexed_job(job: ArmJob, options: ClusterOptions) -> Document:
    """The Job for a cluster without JobSet; `headless_service` gives its pods their names."""
    spec = _job_spec(job, options, f"{job.name}-0.{job.name}")
    spec["template"]["spec"]["subdomain"] = job.name
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(job, options, {}),
        "spec": spec | {"ttlSecondsAfterFinished": options.keep_seconds},
    }


def headless_service(job: ArmJob, options: ClusterOptions, job_uid: str) -> Document:
    """What resolves the names of an Indexed Job's pods. It goes when the Job of `job_uid` does."""
    metadata = _metadata(job, options, {})
    metadata["ownerReferences"] = [{"apiVersion": "batch/v1", "kind": "Job", "name": job.name, "uid": job_uid}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {ARM: job.name},
            "ports": [{"name": "rendezvous", "port": PORT}],
        },
    }


def _metadata(job: ArmJob, options: ClusterOptions, annotations: dict[str, str]) -> Document:
    queue = {QUEUE_LABEL: options.queue} if options.queue else {}
    metadata: Document = {
        "name": job.name,
        "namespace": options.namespace,
        "labels": _labels(job, options) | queue,
        "annotations": {DIGEST: job.digest} | annotations,
    }
    if options.conductor_uid:
        owner = {"apiVersion": "v1", "kind": "Pod", "name": options.conductor, "uid": options.conductor_uid}
        metadata["ownerReferences"] = [owner]
    return metadata


def _labels(job: ArmJob, options: ClusterOptions) -> dict[str, str]:
    own = {NAME: "arm", "app.kubernetes.io/part-of": "clipwatch", ARM: job.name, CONDUCTOR: options.conductor}
    # The network policy lets only those speak that must.
    return own | ({PEERS: "true"} if job.nodes > 1 else {})


def _job_spec(job: ArmJob, options: ClusterOptions, head: str) -> Document:
    return {
        "completionMode": "Indexed",
        "completions": job.nodes,
        "parallelism": job.nodes,
        "backoffLimit": 0,
        "activeDeadlineSeconds": options.deadline,
        "template": {"metadata": {"labels": _labels(job, options)}, "spec": _pod_spec(job, options, head)},
    }


def _pod_spec(job: ArmJob, options: ClusterOptions, head: str) -> Document:
    sources = [_mount("claim", SOURCE, subPath=f"{job.subpath}/source", readOnly=True)] if job.has_source else []
    command = [
        "python",
        "-m",
        "worker.launch.kubernetes.entrypoint",
        "--nodes",
        str(job.nodes),
        "--ranks",
        str(job.ranks),
    ]
    command += ["--head", f"{head}:{PORT}", "--id", job.name, "--folder", str(FOLDER)]
    spec: Document = {
        "restartPolicy": "Never",
        "serviceAccountName": options.service_account,
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
                "image": options.image,
                # Of the image the entry point stays: somebody has to reap the orphans of torchrun.
                "args": command,
                "workingDir": str(FOLDER),
                "env": _environment(job, options),
                "resources": _resources(job, options),
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [
                    _mount("claim", FOLDER, subPath=f"{job.subpath}/out"),
                    *sources,
                    _mount("shm", Path("/dev/shm")),
                    _mount("tmp", Path("/tmp")),
                ],
            }
        ],
        "volumes": [
            {"name": "claim", "persistentVolumeClaim": {"claimName": options.claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": str(SHM)}},
            {"name": "tmp", "emptyDir": {"sizeLimit": str(options.disk)}},
        ],
    }
    if job.nodes > 1:
        apart = {"labelSelector": {"matchLabels": {ARM: job.name}}, "topologyKey": "kubernetes.io/hostname"}
        spec["affinity"] = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}}
    if job.gpu:
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return spec


def _mount(volume: str, path: Path, **more: object) -> Document:
    return {"name": volume, "mountPath": str(path), **more}


def _environment(job: ArmJob, options: ClusterOptions) -> list[Document]:
    plain = {
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "TRITON_CACHE_DIR": "/tmp/triton",
        "OMP_NUM_THREADS": str(options.cpus_per_rank),
        # As in the local launcher: ε must be identical in both arms.
        "OPENBLAS_NUM_THREADS": "1",
    }
    if job.has_source:
        plain["PYTHONPATH"] = str(SOURCE)
    if job.nodes > 1:
        plain |= {"GLOO_SOCKET_IFNAME": options.interface, "NCCL_SOCKET_IFNAME": options.interface}
    elif not job.gpu:
        plain["GLOO_SOCKET_IFNAME"] = "lo"
    index = {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX}']"}}
    return [{"name": name, "value": value} for name, value in plain.items()] + [
        {"name": "NODE_RANK", "valueFrom": index}
    ]


def _resources(job: ArmJob, options: ClusterOptions) -> Document:
    memory = str(job.ranks * options.memory_per_rank + SHM)
    gpus = {"nvidia.com/gpu": str(job.ranks)} if job.gpu else {}
    return {
        "requests": {"cpu": str(job.ranks * options.cpus_per_rank), "memory": memory, **gpus},
        # A memory limit that equals the request: an arm is never evicted for what its neighbours use.
        "limits": {"memory": memory, **gpus},
    }
