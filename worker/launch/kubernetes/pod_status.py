"""Explains the status documents of a cluster to the user who submitted the arm. Sends no request."""

from collections.abc import Iterator
from dataclasses import dataclass

from service.contract import ArmError, ErrorKind
from worker.launch.kubernetes.objects import INDEX_ANNOTATION, SHM, Document

# Reasons for which a pod never starts, however long it waits.
PERMANENT = ("InvalidImageName", "ErrImageNeverPull")
IMAGE = ("ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable", *PERMANENT)
# Reasons of the condition `DisruptionTarget`: why the cluster ended a pod.
DISRUPTIONS = {
    "PreemptionByScheduler": "a pod of a higher priority took its place",
    "DeletionByTaintManager": "its node was tainted",
    "EvictionByEvictionAPI": "it was evicted, as when a node is drained",
    "DeletionByPodGC": "its node is gone",
    "TerminationByKubelet": "its node shut down or ran out of resources",
}


@dataclass(frozen=True)
class ArmEnding:
    """How an arm ended: its exit status, and the cluster's reason if the cluster ended it."""

    status: int
    error: ArmError | None = None


@dataclass(frozen=True)
class Waiting:
    """Why an arm does not run yet. `queued`: it may wait without limit. `permanent`: it will never run."""

    reason: str
    kind: ErrorKind = ErrorKind.DEVICE
    queued: bool = False
    permanent: bool = False


def end_of(
    owner: Document | None, pods: list[Document], nodes: int, *, settled: bool = False, ran: bool = False
) -> ArmEnding | None:
    """The end of the arm whose JobSet or Job is `owner`. None while it runs.

    Args:
        owner: None if it has been deleted.
        pods: of the arm.
        nodes: how many pods the arm needs.
        settled: whether a failure counts although not all pods have ended. When one node fails, the others fail too,
            and the cluster may report late which of them was the first.
        ran: whether the arm has run. If it is queued again after that, it would start from the beginning.
    """
    ended = [pod for pod in pods if _phase(pod) in ("Failed", "Succeeded")]
    if len(ended) == nodes and all(_phase(pod) == "Succeeded" for pod in ended):
        return ArmEnding(0)
    reported = next((error for error in map(_pod_error, pods) if error), None)
    if reported:
        return ArmEnding(1, reported)
    failed = _condition(owner, "Failed") if owner else None
    statuses = [status for pod in pods for status in _exit_statuses(pod) if status]
    if statuses and (settled or failed or len(ended) == nodes):
        return ArmEnding(statuses[0])
    if failed:
        return ArmEnding(1, _owner_error(failed))
    if owner is None:
        return ArmEnding(1, ArmError(kind=ErrorKind.CRASH, message="the arm was deleted from the cluster"))
    if ran and owner.get("spec", {}).get("suspend"):
        return ArmEnding(
            1, ArmError(kind=ErrorKind.DEVICE, message="the arm was taken away: the cluster queued it again")
        )
    return ArmEnding(0) if _condition(owner, "Completed") or _condition(owner, "Complete") else None


def has_failed(pods: list[Document]) -> bool:
    """Whether a node has ended with an exit status that is not 0."""
    return any(status for pod in pods for status in _exit_statuses(pod))


def waiting_for(owner: Document, pods: list[Document], nodes: int, event: str | None) -> Waiting | None:
    """Why not all nodes run. None if they do or did. `event` is the last warning of the cluster for the arm."""
    if owner.get("spec", {}).get("suspend"):
        return Waiting("waits in the queue of the cluster", queued=True)
    reasons = [(pod, why) for pod in pods if (why := _pod_waiting(pod, event))]
    if reasons:
        pod, why = sorted(reasons, key=lambda each: not each[1].permanent)[0]
        return Waiting(f"{_node(pod)} {why.reason}", why.kind, permanent=why.permanent)
    if len(pods) < nodes:
        return Waiting(f"{len(pods)} of {nodes} pods were created" + (f": {event}" if event else ""))
    return None


def _pod_waiting(pod: Document, event: str | None) -> Waiting | None:
    if _phase(pod) != "Pending":
        return None
    unscheduled = _condition(pod, "PodScheduled", "False")
    if unscheduled:
        return Waiting(f"cannot be scheduled: {unscheduled.get('message') or unscheduled.get('reason')}")
    for container in _containers(pod):
        waiting = container.get("state", {}).get("waiting", {})
        reason, message = waiting.get("reason", ""), waiting.get("message") or event
        details = f"{reason}: {message}" if message else reason
        if reason in IMAGE:
            return Waiting(f"cannot pull the image {container.get('image')} ({details})", permanent=reason in PERMANENT)
        if reason:
            return Waiting(f"does not start ({details})")
    return Waiting("does not start" + (f" ({event})" if event else ""))


def _pod_error(pod: Document) -> ArmError | None:
    """Why the cluster ended a pod. None if the pod runs or ended by itself."""
    status, node = pod.get("status", {}), _node(pod)
    for container in _containers(pod):
        if container.get("state", {}).get("terminated", {}).get("reason") == "OOMKilled":
            limit = int(pod["spec"]["containers"][0]["resources"]["limits"]["memory"])
            message = (
                f"{node} ran out of memory and was killed: it may use {limit / 2**30:.1f} GiB, of which "
                f"{SHM / 2**30:.0f} GiB are for shared memory (kubernetes_memory_gib for each rank)"
            )
            return ArmError(kind=ErrorKind.OUT_OF_MEMORY, message=message)
    if status.get("reason") == "DeadlineExceeded":
        return ArmError(kind=ErrorKind.TIME_LIMIT, message=f"{node} ran past the deadline of the cluster")
    if status.get("reason") == "Evicted":
        return ArmError(kind=ErrorKind.LIMIT, message=f"{node} was evicted: {status.get('message', 'no reason given')}")
    disrupted = _condition(pod, "DisruptionTarget")
    if disrupted:
        why = DISRUPTIONS.get(disrupted.get("reason", ""), disrupted.get("reason", "for an unknown reason"))
        details = f" ({disrupted['message']})" if disrupted.get("message") else ""
        return ArmError(kind=ErrorKind.DEVICE, message=f"{node} was taken away: {why}{details}")
    if status.get("reason") in ("NodeLost", "NodeAffinity", "Shutdown", "NodeShutdown", "UnexpectedAdmissionError"):
        message = f"{node} was taken away: {status['reason']}: {status.get('message', '')}".rstrip(": ")
        return ArmError(kind=ErrorKind.DEVICE, message=message)
    return None


def _owner_error(condition: Document) -> ArmError:
    reason, message = condition.get("reason", ""), condition.get("message", "")
    if "DeadlineExceeded" in f"{reason} {message}" or "longer than specified deadline" in message:
        return ArmError(kind=ErrorKind.TIME_LIMIT, message=f"the arm ran past the deadline of the cluster: {message}")
    return ArmError(kind=ErrorKind.CRASH, message=f"the cluster ended the arm: {reason}: {message}")


def _node(pod: Document) -> str:
    return f"node {pod['metadata'].get('annotations', {}).get(INDEX_ANNOTATION, '?')}"


def _phase(pod: Document) -> str:
    return str(pod.get("status", {}).get("phase", "Pending"))


def _condition(document: Document, kind: str, status: str = "True") -> Document | None:
    conditions = document.get("status", {}).get("conditions", [])
    found: Iterator[Document] = (each for each in conditions if each["type"] == kind and each["status"] == status)
    return next(found, None)


def _containers(pod: Document) -> list[Document]:
    return list(pod.get("status", {}).get("containerStatuses", []))


def _exit_statuses(pod: Document) -> list[int]:
    states = [container.get("state", {}).get("terminated") for container in _containers(pod)]
    return [int(state["exitCode"]) for state in states if state]
