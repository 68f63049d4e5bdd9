"""One arm in the cluster, followed by a thread from its creation to its end."""

import logging
import threading
import time
from pathlib import Path

from service.contract import ArmError, ErrorKind
from worker.launch.kubernetes.cluster import FAULTS, Cluster, Created, Expired, said
from worker.launch.kubernetes.objects import GRACE_SECONDS, Document
from worker.launch.kubernetes.options import ClusterOptions
from worker.launch.kubernetes.pod_status import End, Waiting, end_of, has_failed, waiting_for
from worker.launch.kubernetes.shared_folder import SharedFolder
from worker.launch.protocol import LOG

log = logging.getLogger(__name__)

# Beside those of the ranks, for the conductor to find.
ERROR = "error-rank-cluster.json"
# How long a watch goes on before the owner is looked at too.
WATCH_SECONDS = 5
RETRY_SECONDS = 1.0
# How often files are looked at: each look asks the server of the volume.
MIRROR_SECONDS = 1.0
GONE_POLL_SECONDS = 0.2
# How long after one failed node the others, and the cluster's words on them, are waited for.
SETTLE_SECONDS = 10.0
GONE_SECONDS = 60.0


class KubernetesArm:
    """A running arm. Its end is known when the cluster tells and all that its pods wrote has been fetched."""

    def __init__(self, cluster: Cluster, created: Created, mirror: SharedFolder, options: ClusterOptions, folder: Path):
        self._cluster, self._created, self._mirror, self._options = cluster, created, mirror, options
        self._folder = folder
        self._end: End | None = None
        self._status: int | None = None
        self._mirrored = 0.0
        self._ran = False
        self._stopping = threading.Event()
        self._said = ""
        self._waiting_since: float | None = None
        self._failing_since: float | None = None
        self._thread = threading.Thread(target=self._follow, name=created.job.name, daemon=True)
        self._thread.start()

    def poll(self) -> int | None:
        if self._status is None:
            end = self._end
            if end is not None or time.monotonic() - self._mirrored > MIRROR_SECONDS:
                self._mirror.update(ended=end is not None)
                self._mirrored = time.monotonic()
            if self._mirror.full:
                message = f"the arm wrote more than the limit of {self._options.disk / 2**20:,.0f} MiB"
                end = End(1, ArmError(kind=ErrorKind.LIMIT, message=message))
            if end is not None:
                if end.error is not None:
                    self._say(end.error.message)
                    (self._folder / ERROR).write_text(end.error.model_dump_json(), encoding="utf-8")
                self._status = end.status
        return self._status

    def stop(self) -> None:
        self._stopping.set()
        if not self._deleted():
            log.error("%s: still in the cluster after %g s", self._created.job.name, GONE_SECONDS)
        self._mirror.update(ended=True)
        self._mirror.remove()
        self._thread.join(WATCH_SECONDS + GRACE_SECONDS)

    def _deleted(self) -> bool:
        """Deletes the arm; whether it and its pods are gone in time."""
        deadline, asked = time.monotonic() + GONE_SECONDS, False
        while time.monotonic() < deadline:
            try:
                if not asked:
                    self._cluster.delete(self._created)
                    asked = True
                if self._cluster.owner(self._created) is None and not self._cluster.pods(self._created)[0]:
                    return True
            except FAULTS as fault:
                log.warning("%s: not deleted yet: %s", self._created.job.name, said(fault))
            time.sleep(GONE_POLL_SECONDS)
        return False

    def _follow(self) -> None:
        """Lists, then watches from there; lists again when the API server has forgotten or cannot be reached."""
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
                # The arm runs on without us; limits of time are the conductor's.
                if not isinstance(fault, FAULTS):
                    log.exception("%s: cannot be followed", self._created.job.name)
                self._say(f"the cluster cannot be asked: {said(fault)}")
                version = ""
                self._stopping.wait(RETRY_SECONDS)

    def _watch(self, pods: dict[str, Document], version: str) -> str:
        """Follows the pods until one ends or it is time to look at their owner; the version seen last."""
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
        if waiting is None or waiting.patient:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
        if waiting is None:
            return
        self._say(waiting.words)
        waited = now - self._waiting_since if self._waiting_since is not None else 0.0
        if waiting.hopeless or waited > self._options.start_seconds:
            after = "" if waiting.hopeless else f" for {self._options.start_seconds:g} s"
            self._end = End(1, ArmError(kind=waiting.kind, message=f"the arm did not start{after}: {waiting.words}"))

    def _say(self, words: str) -> None:
        """A line in the arm's log; once, however often it is so."""
        if words != self._said:
            self._said = words
            with (self._folder / LOG).open("a", encoding="utf-8") as file:
                file.write(f"clipwatch: {words}\n")


def _all_started(pods: list[Document]) -> bool:
    return all(pod.get("status", {}).get("phase") != "Pending" for pod in pods)
