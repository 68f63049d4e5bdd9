"""The API server: creates, looks at, watches and deletes the objects of arms. All that speaks to it is here."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError
from urllib3.util.retry import Retry

from worker.launch.kubernetes.objects import (
    ARM,
    CONDUCTOR,
    DIGEST,
    NAME,
    ArmJob,
    Document,
    headless_service,
    indexed_job,
    job_set,
)
from worker.launch.kubernetes.options import ClusterOptions
from worker.launch.protocol import LaunchError

# Whatever an API server or the way to it does.
FAULTS = (ApiException, HTTPError, OSError)
NOT_FOUND, CONFLICT, GONE = 404, 409, 410
TIMEOUT_SECONDS = 30
# Every request may be sent twice: names make creating harmless, and deleting is.
RETRIES = Retry(
    total=5, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504), allowed_methods=None, raise_on_status=False
)


class Expired(Exception):
    """The API server no longer knows the version that a watch should resume from."""


@dataclass(frozen=True)
class Kind:
    """A kind of object that owns an arm's pods."""

    group: str
    version: str
    plural: str


JOB_SET, JOB = Kind("jobset.x-k8s.io", "v1alpha2", "jobsets"), Kind("batch", "v1", "jobs")


@dataclass(frozen=True)
class Created:
    """An arm as it is in the cluster."""

    job: ArmJob
    kind: Kind


def connection() -> client.Configuration:
    """The way to the cluster that this process runs in, or that `KUBECONFIG` names.

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


class Cluster:
    """One namespace of a cluster, as a conductor sees it."""

    def __init__(self, options: ClusterOptions, configuration: client.Configuration):
        configuration.retries = RETRIES
        self._options = options
        api = client.ApiClient(configuration)
        self._core, self._objects = client.CoreV1Api(api), client.CustomObjectsApi(api)

    def create(self, job: ArmJob) -> Created:
        """Creates the arm, or finds it created already.

        Raises:
            LaunchError: the API server refuses, cannot be reached, or has another arm of that name.
        """
        try:
            if self._has_job_sets():
                self._post(JOB_SET, job_set(job, self._options))
                return Created(job, JOB_SET)
            uid = self._post(JOB, indexed_job(job, self._options))["metadata"]["uid"]
            if job.nodes > 1:
                self._post_service(headless_service(job, self._options, uid))
        except FAULTS as fault:
            raise LaunchError(f"the cluster did not take the arm: {said(fault)}") from fault
        return Created(job, JOB)

    def owner(self, created: Created) -> Document | None:
        """The JobSet or Job as it is now, or nothing when it is gone."""
        try:
            return self._get(created.kind, created.job.name)
        except ApiException as fault:
            if fault.status == NOT_FOUND:
                return None
            raise

    def delete(self, created: Created) -> None:
        """Asks for the arm to be deleted after its pods. Harmless when it is gone."""
        try:
            self._delete(created.kind, created.job.name)
        except ApiException as fault:
            if fault.status != NOT_FOUND:
                raise

    def pods(self, created: Created) -> tuple[dict[str, Document], str]:
        """The arm's pods by name, and the version of the list, from which a watch goes on."""
        answer = self._core.list_namespaced_pod(
            self._options.namespace,
            label_selector=f"{ARM}={created.job.name}",
            _preload_content=False,
            _request_timeout=TIMEOUT_SECONDS,
        )
        found = _read(answer)
        return {pod["metadata"]["name"]: pod for pod in found["items"]}, found["metadata"]["resourceVersion"]

    def changes(self, created: Created, version: str, seconds: int) -> Iterator[tuple[str, Document]]:
        """What happens to the arm's pods after `version`, for at most `seconds`: ADDED, MODIFIED, DELETED, BOOKMARK.

        Raises:
            Expired: list again.
        """
        try:
            # Objects as they come: what this client's models do not expect is no reason to lose sight of an arm.
            for event in watch.Watch(return_type="object").stream(
                self._core.list_namespaced_pod,
                self._options.namespace,
                label_selector=f"{ARM}={created.job.name}",
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

    def warning(self, created: Created) -> str | None:
        """The last warning that the cluster noted for the arm or one of its pods."""
        answer = self._core.list_namespaced_event(
            self._options.namespace,
            field_selector="type=Warning",
            _preload_content=False,
            _request_timeout=TIMEOUT_SECONDS,
        )
        events = [e for e in _read(answer)["items"] if e["involvedObject"]["name"].startswith(created.job.name)]
        latest = max(events, key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime") or ""), default=None)
        return f"{latest['reason']}: {latest['message']}" if latest else None

    def sweep(self) -> int:
        """Deletes the arms that this conductor's pod created before; how many there were.

        Raises:
            LaunchError: the API server refuses or cannot be reached.
        """
        swept = 0
        try:
            for kind in (JOB_SET, JOB) if self._has_job_sets() else (JOB,):
                # Jobs of a JobSet go with it: only those that were created by name here have its label and no JobSet.
                for name in self._own(kind):
                    self._delete(kind, name)
                    swept += 1
        except FAULTS as fault:
            raise LaunchError(f"the cluster cannot be asked: {said(fault)}") from fault
        return swept

    def conductors(self) -> set[str]:
        """The names of the pods that conduct."""
        answer = self._core.list_namespaced_pod(
            self._options.namespace,
            label_selector=f"{NAME}=worker",
            _preload_content=False,
            _request_timeout=TIMEOUT_SECONDS,
        )
        return {pod["metadata"]["name"] for pod in _read(answer)["items"]}

    def _has_job_sets(self) -> bool:
        try:
            found = self._objects.get_api_resources(
                JOB_SET.group, JOB_SET.version, _preload_content=False, _request_timeout=TIMEOUT_SECONDS
            )
        except ApiException as fault:
            if fault.status == NOT_FOUND:
                return False
            raise
        return any(each["name"] == JOB_SET.plural for each in _read(found)["resources"])

    def _own(self, kind: Kind) -> list[str]:
        answer = self._objects.list_namespaced_custom_object(
            kind.group,
            kind.version,
            self._options.namespace,
            kind.plural,
            label_selector=f"{CONDUCTOR}={self._options.conductor}",
            _preload_content=False,
            _request_timeout=TIMEOUT_SECONDS,
        )
        owned = [each["metadata"] for each in _read(answer)["items"]]
        return [m["name"] for m in owned if not any(o["kind"] == "JobSet" for o in m.get("ownerReferences", []))]

    def _post(self, kind: Kind, body: Document) -> Document:
        """The object as the cluster has it. One of that name that is this arm is as good as a new one."""
        name = body["metadata"]["name"]
        try:
            answer = self._objects.create_namespaced_custom_object(
                kind.group,
                kind.version,
                self._options.namespace,
                kind.plural,
                body,
                _preload_content=False,
                _request_timeout=TIMEOUT_SECONDS,
            )
        except ApiException as fault:
            if fault.status != CONFLICT:
                raise
        else:
            return _read(answer)
        found = self._get(kind, name)
        metadata = found["metadata"]
        if metadata.get("annotations", {}).get(DIGEST) != body["metadata"]["annotations"][DIGEST]:
            raise LaunchError(f"the cluster has another arm of the name {name}")
        if metadata.get("deletionTimestamp"):
            raise LaunchError(f"the arm {name} is being deleted from the cluster")
        return found

    def _post_service(self, body: Any) -> None:
        try:
            self._core.create_namespaced_service(
                self._options.namespace, body, _preload_content=False, _request_timeout=TIMEOUT_SECONDS
            )
        except ApiException as fault:
            if fault.status != CONFLICT:
                raise

    def _get(self, kind: Kind, name: str) -> Document:
        return _read(
            self._objects.get_namespaced_custom_object(
                kind.group,
                kind.version,
                self._options.namespace,
                kind.plural,
                name,
                _preload_content=False,
                _request_timeout=TIMEOUT_SECONDS,
            )
        )

    def _delete(self, kind: Kind, name: str) -> None:
        self._objects.delete_namespaced_custom_object(
            kind.group,
            kind.version,
            self._options.namespace,
            kind.plural,
            name,
            propagation_policy="Foreground",
            _preload_content=False,
            _request_timeout=TIMEOUT_SECONDS,
        )


def said(fault: BaseException) -> str:
    """What an API server answered, or why there was no answer, in one line."""
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
