"""A running arm in the cluster. A thread follows it from its creation to its end."""

import logging
import threading
import time
from pathlib import Path

from service.contract import ArmError, ErrorKind
from service.settings import Settings
from worker import error_files
from worker.launch.kubernetes.cluster import FAULTS, Cluster, CreatedArm, Expired, describe_error
from worker.launch.kubernetes.derived import disk_bytes
from worker.launch.kubernetes.objects import GRACE_SECONDS, Document
from worker.launch.kubernetes.pod_status import ArmEnding, Waiting, end_of, has_failed, waiting_for
from worker.launch.kubernetes.shared_folder import SharedFolder
from worker.launch.protocol import LOG

log = logging.getLogger(__name__)

# How long a watch of the pods lasts before their owner is read too.
WATCH_SECONDS = 5
RETRY_SECONDS = 1.0
# Seconds between two copies of new files: each copy sends requests to the server of the volume.
COPY_SECONDS = 1.0
DELETE_POLL_SECONDS = 0.2
# How long to wait, after one node has failed, for the others and for what the cluster reports about them.
SETTLE_SECONDS = 10.0
DELETE_SECONDS = 60.0


class KubernetesArm:
    """A running arm. It has ended when the cluster reports its end and all files of its pods have been copied."""

    def __init__(self, cluster: Cluster, created: CreatedArm, shared: SharedFolder, settings: Settings, folder: Path):
        self._cluster, self._created, self._shared, self._settings = cluster, created, shared, settings
        self._folder = folder
        self._end: ArmEnding | None = None
        self._status: int | None = None
        self._copied_at = 0.0
        self._ran = False
        self._stopping = threading.Event()
        self._last_message = ""
        self._waiting_since: float | None = None
        self._failing_since: float | None = None
        self._thread = threading.Thread(target=self._follow, name=created.job.name, daemon=True)
        self._thread.start()

    def poll(self) -> int | None:
        if self._status is None:
            end = self._end
            if end is not None or time.monotonic() - self._copied_at > COPY_SECONDS:
                self._shared.update(ended=end is not None)
                self._copied_at = time.monotonic()
            if self._shared.full:
                message = f"the arm wrote more than the limit of {disk_bytes(self._settings) / 2**20:,.0f} MiB"
                end = ArmEnding(1, ArmError(kind=ErrorKind.LIMIT, message=message))
            if end is not None:
                if end.error is not None:
                    self._log(end.error.message)
                    error_files.write(self._folder, error_files.CLUSTER, end.error)
                self._status = end.status
        return self._status

    def stop(self) -> None:
        self._stopping.set()
        if not self._deleted():
            log.error("%s: still in the cluster after %g s", self._created.job.name, DELETE_SECONDS)
        self._shared.update(ended=True)
        self._shared.remove()
        self._thread.join(WATCH_SECONDS + GRACE_SECONDS)

    def _deleted(self) -> bool:
        """Delete the arm. Whether it and its pods were gone in time."""
        deadline, asked = time.monotonic() + DELETE_SECONDS, False
        while time.monotonic() < deadline:
            try:
                if not asked:
                    self._cluster.delete(self._created)
                    asked = True
                if self._cluster.owner(self._created) is None and not self._cluster.pods(self._created)[0]:
                    return True
            except FAULTS as fault:
                log.warning("%s: not deleted yet: %s", self._created.job.name, describe_error(fault))
            time.sleep(DELETE_POLL_SECONDS)
        return False

    def _follow(self) -> None:
        """List the pods, then watch them. List again if the watch has expired or the API server cannot be reached."""
        pods: dict[str, Document] = {}
        version = ""
        while not self._stopping.is_set() and self._end is None:
            try:
                if not version:
                    pods, version = self._cluster.pods(self._created)
                self._judge(list(pods.values()))
                if self._end is None:
                    version = self._watch(pods, version)
            except Expired:
                version = ""
            except Exception as fault:
                # The arm continues. The conductor ends it if it takes too long.
                if not isinstance(fault, FAULTS):
                    log.exception("%s: cannot be followed", self._created.job.name)
                self._log(f"the cluster cannot be asked: {describe_error(fault)}")
                version = ""
                self._stopping.wait(RETRY_SECONDS)

    def _watch(self, pods: dict[str, Document], version: str) -> str:
        """Follow the pods until one ends or their owner is due to be read. Returns the last version seen."""
        for kind, pod in self._cluster.changes(self._created, version, WATCH_SECONDS):
            version = pod["metadata"]["resourceVersion"]
            if kind == "DELETED":
                pods.pop(pod["metadata"]["name"], None)
            elif kind in ("ADDED", "MODIFIED"):
                pods[pod["metadata"]["name"]] = pod
                if pod["status"].get("phase") in ("Failed", "Succeeded"):
                    break
            if self._stopping.is_set():
                break
        return version

    def _judge(self, pods: list[Document]) -> None:
        owner, nodes = self._cluster.owner(self._created), self._created.job.nodes
        now = time.monotonic()
        if has_failed(pods) and self._failing_since is None:
            self._failing_since = now
        settled = self._failing_since is not None and now - self._failing_since > SETTLE_SECONDS
        self._ran = self._ran or any(pod.get("status", {}).get("phase") == "Running" for pod in pods)
        self._end = end_of(owner, pods, nodes, settled=settled, ran=self._ran)
        if self._end is None and owner is not None:
            event = None if len(pods) == nodes and _all_started(pods) else self._cluster.warning(self._created)
            self._wait(waiting_for(owner, pods, nodes, event), now)

    def _wait(self, waiting: Waiting | None, now: float) -> None:
        if waiting is None or waiting.queued:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
        if waiting is None:
            return
        self._log(waiting.reason)
        waited = now - self._waiting_since if self._waiting_since is not None else 0.0
        if waiting.permanent or waited > self._settings.kubernetes_start_seconds:
            after = "" if waiting.permanent else f" for {self._settings.kubernetes_start_seconds:g} s"
            self._end = ArmEnding(
                1, ArmError(kind=waiting.kind, message=f"the arm did not start{after}: {waiting.reason}")
            )

    def _log(self, message: str) -> None:
        """Add a line to the arm's log, unless it repeats the last one."""
        if message != self._last_message:
            self._last_message = message
            with (self._folder / LOG).open("a", encoding="utf-8") as file:
                file.write(f"clipwatch: {message}\n")


def _all_started(pods: list[Document]) -> bool:
    return all(pod.get("status", {}).get("phase") != "Pending" for pod in pods)
