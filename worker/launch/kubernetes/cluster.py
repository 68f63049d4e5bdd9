"""Requests to the API server: creates, reads, watches and deletes the objects of arms. No other module sends any."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError
from urllib3.util.retry import Retry

from service.settings import Settings
from worker.launch.kubernetes.derived import conductor_name
from worker.launch.kubernetes.objects import (
    ARM_LABEL,
    CONDUCTOR_LABEL,
    DIGEST_ANNOTATION,
    NAME_LABEL,
    ArmJob,
    Document,
    headless_service,
    indexed_job,
    job_set,
)
from worker.launch.protocol import LaunchError

# Raised when the API server refuses a request or cannot be reached.
FAULTS = (ApiException, HTTPError, OSError)
NOT_FOUND, CONFLICT, GONE = 404, 409, 410
TIMEOUT_SECONDS = 30
# Answers as bytes: the client's models would drop fields that they do not know.
RAW: dict[str, Any] = {"_preload_content": False, "_request_timeout": TIMEOUT_SECONDS}
# Every request may be sent twice: an object that is created twice is found by its name, and deleting is idempotent.
RETRIES = Retry(
    total=5, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504), allowed_methods=None, raise_on_status=False
)


class Expired(Exception):
    """The API server no longer knows the version from which a watch should continue."""


@dataclass(frozen=True)
class Kind:
    """A kind of object that owns an arm's pods."""

    group: str
    version: str
    plural: str


JOB_SET, JOB = Kind("jobset.x-k8s.io", "v1alpha2", "jobsets"), Kind("batch", "v1", "jobs")


@dataclass(frozen=True)
class CreatedArm:
    """An arm in the cluster, and the kind of object that owns its pods."""

    job: ArmJob
    kind: Kind


def connection() -> client.Configuration:
    """The address and credentials of the cluster that this process runs in, or that `KUBECONFIG` names.

    Raises:
        LaunchError: there is neither.
    """
    found = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=found)
    except config.ConfigException:
        try:
            config.load_kube_config(client_configuration=found)
        except config.ConfigException as fault:
            raise LaunchError(f"no Kubernetes cluster: not in a pod, and {fault}") from fault
    return found


def describe_cluster(settings: Settings, cluster: "Cluster | None" = None) -> str:
    """The namespace of arms and the kind of their objects, in one line. `cluster` is by default that of `connection`.

    Raises:
        LaunchError: there is no cluster, or it refuses or cannot be reached.
    """
    cluster = cluster or Cluster(settings, connection())
    try:
        kind = "JobSets" if cluster.has_job_sets() else "Indexed Jobs, because JobSet is not installed"
        conductors = len(cluster.conductors())
    except FAULTS as fault:
        raise LaunchError(f"the cluster cannot be asked: {describe_error(fault)}") from fault
    return f"namespace {settings.kubernetes_namespace}: {conductors} conductors, arms are {kind}"


class Cluster:
    """The namespace of a cluster in which arms run."""

    def __init__(self, settings: Settings, configuration: client.Configuration):
        configuration.retries = RETRIES
        self._settings, self._namespace = settings, settings.kubernetes_namespace
        api = client.ApiClient(configuration)
        self._core, self._objects = client.CoreV1Api(api), client.CustomObjectsApi(api)

    def create(self, job: ArmJob) -> CreatedArm:
        """Create the arm, or find it created already.

        Raises:
            LaunchError: the API server refuses, cannot be reached, or has another arm of that name.
        """
        try:
            if self.has_job_sets():
                self._post(JOB_SET, job_set(job, self._settings))
                return CreatedArm(job, JOB_SET)
            uid = self._post(JOB, indexed_job(job, self._settings))["metadata"]["uid"]
            if job.nodes > 1:
                self._post_service(headless_service(job, self._settings, uid))
        except FAULTS as fault:
            raise LaunchError(f"the cluster did not take the arm: {describe_error(fault)}") from fault
        return CreatedArm(job, JOB)

    def owner(self, created: CreatedArm) -> Document | None:
        """The JobSet or Job as it is now. None if it has been deleted."""
        try:
            return self._get(created.kind, created.job.name)
        except ApiException as fault:
            if fault.status == NOT_FOUND:
                return None
            raise

    def delete(self, created: CreatedArm) -> None:
        """Ask the cluster to delete the pods of an arm, then the arm. Harmless if it has been deleted."""
        try:
            self._delete(created.kind, created.job.name)
        except ApiException as fault:
            if fault.status != NOT_FOUND:
                raise

    def pods(self, created: CreatedArm) -> tuple[dict[str, Document], str]:
        """The arm's pods by name, and the version of this list, from which a watch can continue."""
        found = self._list_pods(f"{ARM_LABEL}={created.job.name}")
        return {pod["metadata"]["name"]: pod for pod in found["items"]}, found["metadata"]["resourceVersion"]

    def changes(self, created: CreatedArm, version: str, seconds: int) -> Iterator[tuple[str, Document]]:
        """The changes of the arm's pods after `version`, for at most `seconds`.

        Yields the type of a change (ADDED, MODIFIED, DELETED or BOOKMARK) and the pod.

        Raises:
            Expired: list the pods again.
        """
        try:
            # Documents in place of models: a model raises when a field is missing that it requires.
            for event in watch.Watch(return_type="object").stream(
                self._core.list_namespaced_pod,
                self._namespace,
                label_selector=f"{ARM_LABEL}={created.job.name}",
                resource_version=version,
                timeout_seconds=seconds,
                allow_watch_bookmarks=True,
                _request_timeout=seconds + TIMEOUT_SECONDS,
            ):
                yield event["type"], event["raw_object"]
        except ApiException as fault:
            if fault.status == GONE:
                raise Expired from fault
            raise

    def warning(self, created: CreatedArm) -> str | None:
        """The last warning that the cluster recorded for the arm or one of its pods."""
        found = _read(self._core.list_namespaced_event(self._namespace, field_selector="type=Warning", **RAW))
        events = [e for e in found["items"] if e["involvedObject"]["name"].startswith(created.job.name)]
        latest = max(events, key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime") or ""), default=None)
        return f"{latest['reason']}: {latest['message']}" if latest else None

    def sweep(self) -> int:
        """Delete the arms that this conductor's pod created earlier. Returns how many there were.

        Raises:
            LaunchError: the API server refuses or cannot be reached.
        """
        swept = 0
        try:
            for kind in (JOB_SET, JOB) if self.has_job_sets() else (JOB,):
                for name in self._own(kind):
                    self._delete(kind, name)
                    swept += 1
        except FAULTS as fault:
            raise LaunchError(f"the cluster cannot be asked: {describe_error(fault)}") from fault
        return swept

    def conductors(self) -> set[str]:
        """The names of the pods that are conductors."""
        return {pod["metadata"]["name"] for pod in self._list_pods(f"{NAME_LABEL}=worker")["items"]}

    def has_job_sets(self) -> bool:
        """Whether JobSet is installed in the cluster."""
        try:
            found = self._objects.get_api_resources(JOB_SET.group, JOB_SET.version, **RAW)
        except ApiException as fault:
            if fault.status == NOT_FOUND:
                return False
            raise
        return any(each["name"] == JOB_SET.plural for each in _read(found)["resources"])

    def _own(self, kind: Kind) -> list[str]:
        """The objects that this conductor created. The Jobs of a JobSet are not among them: they go with it."""
        label = f"{CONDUCTOR_LABEL}={conductor_name(self._settings)}"
        found = _read(self._objects.list_namespaced_custom_object(*self._place(kind), label_selector=label, **RAW))
        owned = [each["metadata"] for each in found["items"]]
        return [m["name"] for m in owned if not any(o["kind"] == "JobSet" for o in m.get("ownerReferences", []))]

    def _post(self, kind: Kind, body: Document) -> Document:
        """Create an object. An object of that name that is the same arm is as good as a new one."""
        name = body["metadata"]["name"]
        try:
            return _read(self._objects.create_namespaced_custom_object(*self._place(kind), body, **RAW))
        except ApiException as fault:
            if fault.status != CONFLICT:
                raise
        found = self._get(kind, name)
        metadata = found["metadata"]
        if metadata.get("annotations", {}).get(DIGEST_ANNOTATION) != body["metadata"]["annotations"][DIGEST_ANNOTATION]:
            raise LaunchError(f"the cluster has another arm of the name {name}")
        if metadata.get("deletionTimestamp"):
            raise LaunchError(f"the arm {name} is being deleted from the cluster")
        return found

    def _post_service(self, body: Any) -> None:
        try:
            self._core.create_namespaced_service(self._namespace, body, **RAW)
        except ApiException as fault:
            if fault.status != CONFLICT:
                raise

    def _get(self, kind: Kind, name: str) -> Document:
        return _read(self._objects.get_namespaced_custom_object(*self._place(kind), name, **RAW))

    def _delete(self, kind: Kind, name: str) -> None:
        place = self._place(kind)
        self._objects.delete_namespaced_custom_object(*place, name, propagation_policy="Foreground", **RAW)

    def _list_pods(self, label: str) -> Document:
        return _read(self._core.list_namespaced_pod(self._namespace, label_selector=label, **RAW))

    def _place(self, kind: Kind) -> tuple[str, str, str, str]:
        return kind.group, kind.version, self._namespace, kind.plural


def describe_error(fault: BaseException) -> str:
    """The answer of the API server, or the reason why there was none, in one line."""
    if isinstance(fault, ApiException):
        try:
            message = json.loads(fault.body or "{}").get("message")
        except (ValueError, AttributeError):
            message = None
        return f"{fault.status}: {message or fault.reason}"
    return f"{type(fault).__name__}: {fault}".splitlines()[0]


def _read(answer: Any) -> Document:
    document: Document = json.loads(answer.data)
    return document
