"""An API server over HTTP that answers as Kubernetes does, and a kubelet that runs the containers of arms as processes.

The shapes of the answers follow the API reference and real ones in Kubernetes' documentation: lists with a
`resourceVersion`, watch events a line each, `Status` objects for refusals, 410 inside of a watch that resumes from a
version that was forgotten.
"""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Document = dict[str, Any]

OBJECTS = re.compile(
    r"^/(?:api|apis)/(?P<group>[^/]+(?:/[^/]+)?)/namespaces/arms/(?P<plural>\w+)(?:/(?P<name>[^/]+))?$"
)
INDEX = "batch.kubernetes.io/job-completion-index"


def refusal(code: int, reason: str, message: str) -> Document:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


def container(**state: Document) -> Document:
    """The status of an arm's container, `waiting`, `running` or `terminated`."""
    return {
        "name": "arm",
        "image": "worker:1",
        "imageID": "",
        "ready": "running" in state,
        "started": "running" in state,
        "restartCount": 0,
        "lastState": {},
        "state": state,
    }


class ApiServer:
    """Objects by plural and name. `on_pods(owner, pods)` is called with new pods, in place of a kubelet."""

    def __init__(self, *, job_sets: bool = True, on_pods: Callable[[Document, list[Document]], None] | None = None):
        self.job_sets, self.on_pods = job_sets, on_pods
        self.objects: dict[str, dict[str, Document]] = {
            k: {} for k in ("jobs", "jobsets", "pods", "services", "events")
        }
        self.requests: list[tuple[str, str]] = []
        # The answers to the next requests, and the oldest version from which a watch may continue.
        self.refusals: list[Document] = []
        self.oldest = 0
        self.version = 100
        self.history: list[tuple[int, str, Document]] = []
        self.changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def count(self, verb: str, part: str) -> int:
        return sum(verb == v and part in path for v, path in self.requests)

    def lists(self, plural: str) -> int:
        """How often requests of that kind were sent."""
        return sum(verb == "GET" and f"/{plural}?" in path and "watch=" not in path for verb, path in self.requests)

    def set_pod(self, name: str, **status: Any) -> None:
        """Change a pod's status, as a kubelet does."""
        with self.changed:
            pod = json.loads(json.dumps(self.objects["pods"][name]))
            pod["status"] |= status
            self._store("pods", pod, "MODIFIED")

    def set_owner(self, plural: str, **status: Any) -> None:
        with self.changed:
            for owner in self.objects[plural].values():
                owner.setdefault("status", {}).update(status)

    def forget(self) -> None:
        """Forget old versions, as a compacted etcd does: no watch can continue from them."""
        with self.changed:
            self.version += 50
            self.oldest = self.version
            self.changed.notify_all()

    def remove(self, plural: str, name: str) -> None:
        with self.changed:
            self.objects[plural].pop(name, None)
            for pod in [
                p for p in self.objects["pods"].values() if p["metadata"]["labels"]["clipwatch.dev/arm"] == name
            ]:
                del self.objects["pods"][pod["metadata"]["name"]]
                self._note("DELETED", pod)

    def add(self, plural: str, document: Document) -> None:
        with self.changed:
            self._store(plural, document, "ADDED")

    def _store(self, plural: str, document: Document, kind: str) -> None:
        document["metadata"].setdefault("uid", str(uuid.uuid4()))
        document["metadata"].setdefault("namespace", "arms")
        self.objects[plural][document["metadata"]["name"]] = document
        if plural == "pods":
            self._note(kind, document)

    def _note(self, kind: str, pod: Document) -> None:
        self.version += 1
        pod["metadata"]["resourceVersion"] = str(self.version)
        self.history.append((self.version, kind, pod))
        self.changed.notify_all()

    def create(self, plural: str, document: Document) -> tuple[int, Document]:
        name = document["metadata"]["name"]
        with self.changed:
            if name in self.objects[plural]:
                return 409, refusal(409, "AlreadyExists", f'{plural} "{name}" already exists')
            self._store(plural, document, "ADDED")
            pods = self._pods_of(plural, document)
            for pod in pods:
                self._store("pods", pod, "ADDED")
        if pods and self.on_pods:
            self.on_pods(document, pods)
        return 201, document

    def _pods_of(self, plural: str, document: Document) -> list[Document]:
        """The pods that the controllers of Job and JobSet would create."""
        if plural == "jobsets":
            (replicated,) = document["spec"]["replicatedJobs"]
            spec, prefix = replicated["template"]["spec"], f"{document['metadata']['name']}-{replicated['name']}-0"
        elif plural == "jobs":
            spec, prefix = document["spec"], document["metadata"]["name"]
        else:
            return []
        if document["spec"].get("suspend") or document["metadata"]["labels"].get("kueue.x-k8s.io/queue-name"):
            document["spec"]["suspend"] = True
            return []
        return [
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": f"{prefix}-{index}-x7k2p",
                    "labels": spec["template"]["metadata"]["labels"],
                    "annotations": {INDEX: str(index)},
                },
                "spec": spec["template"]["spec"] | {"hostname": f"{prefix}-{index}"},
                "status": {"phase": "Pending"},
            }
            for index in range(spec["parallelism"])
        ]

    def watch(self, after: int, until_seconds: float, send: Callable[[Document], None]) -> None:
        if after < self.oldest:
            message = f"too old resource version: {after} ({self.oldest})"
            send({"type": "ERROR", "object": refusal(410, "Expired", message)})
            return
        sent = after
        with self.changed:
            while self.oldest <= sent:
                for version, kind, pod in [each for each in self.history if each[0] > sent]:
                    send({"type": kind, "object": pod})
                    sent = version
                if not self.changed.wait(min(until_seconds, 1)):
                    return

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def answer(self, code: int, document: Document) -> None:
                body = json.dumps(document).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def handle_request(self, verb: str) -> None:
                path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
                server.requests.append((verb, self.path))
                if server.refusals:
                    refused = server.refusals.pop(0)
                    self.answer(refused["code"], refused)
                elif path == "/apis/jobset.x-k8s.io/v1alpha2":
                    self.discover()
                elif (found := OBJECTS.match(path)) and found["plural"] in server.objects:
                    self.objects(verb, found["plural"], found["name"], query, body)
                else:
                    self.answer(404, refusal(404, "NotFound", "the server could not find the requested resource"))

            def discover(self) -> None:
                if server.job_sets:
                    resources = [{"name": "jobsets", "kind": "JobSet", "namespaced": True, "verbs": ["create"]}]
                    self.answer(200, {"kind": "APIResourceList", "apiVersion": "v1", "resources": resources})
                else:
                    self.answer(404, refusal(404, "NotFound", "the server could not find the requested resource"))

            def objects(self, verb: str, plural: str, name: str | None, query: dict[str, Any], body: Document) -> None:
                if verb == "POST":
                    self.answer(*server.create(plural, body))
                elif name and name not in server.objects[plural]:
                    self.answer(404, refusal(404, "NotFound", f'{plural} "{name}" not found'))
                elif verb == "DELETE":
                    server.remove(plural, str(name))
                    self.answer(200, {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})
                elif name:
                    self.answer(200, server.objects[plural][name])
                elif "watch" in query:
                    self.stream(query)
                else:
                    self.list(plural, query)

            def list(self, plural: str, query: dict[str, Any]) -> None:
                key, _, value = query.get("labelSelector", ["="])[0].partition("=")
                with server.changed:
                    items = [
                        o
                        for o in server.objects[plural].values()
                        if not key or o["metadata"]["labels"].get(key) == value
                    ]
                    metadata = {"resourceVersion": str(server.version)}
                self.answer(200, {"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items})

            def stream(self, query: dict[str, Any]) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()

                def send(event: Document) -> None:
                    line = json.dumps(event).encode() + b"\n"
                    self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                    self.wfile.flush()

                with suppress(BrokenPipeError, ConnectionResetError):
                    server.watch(int(query["resourceVersion"][0]), float(query["timeoutSeconds"][0]), send)
                    self.wfile.write(b"0\r\n\r\n")

            def do_GET(self) -> None:
                self.handle_request("GET")

            def do_POST(self) -> None:
                self.handle_request("POST")

            def do_DELETE(self) -> None:
                self.handle_request("DELETE")

        return Handler


class Kubelet:
    """Runs the container of each pod as a process of this machine, with other mounts and another master."""

    def __init__(self, claim: Path):
        self._claim = claim
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.server: ApiServer | None = None
        self.processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, _: Document, pods: list[Document]) -> None:
        for pod in pods:
            threading.Thread(target=self._run, args=(pod,), daemon=True).start()

    def _run(self, pod: Document) -> None:
        (wanted,) = pod["spec"]["containers"]
        places = {
            mount["mountPath"]: str(self._claim / mount["subPath"])
            for mount in wanted["volumeMounts"]
            if mount["name"] == "claim"
        }
        index = pod["metadata"]["annotations"][INDEX]
        own = {each["name"]: places.get(each.get("value"), each.get("value", index)) for each in wanted["env"]}
        own |= {"GLOO_SOCKET_IFNAME": "lo", "HOME": os.environ.get("HOME", "/tmp"), "PATH": os.environ["PATH"]}
        own["PYTHONPATH"] = os.pathsep.join(filter(None, [own.get("PYTHONPATH"), str(Path(__file__).parents[4])]))
        arguments = [places.get(word, word) for word in wanted["args"]]
        master = re.compile(r"^arm-[\w-]+\.arm-[\w-]+:\d+$")
        arguments = [f"127.0.0.1:{self._port}" if master.match(word) else word for word in arguments]
        assert self.server
        self.server.set_pod(
            pod["metadata"]["name"],
            phase="Running",
            containerStatuses=[container(running={"startedAt": "2026-01-01T00:00:00Z"})],
        )
        process = subprocess.Popen([sys.executable, *arguments[1:]], cwd=places["/arm"], env=own)
        self.processes.append(process)
        status = process.wait()
        with suppress(KeyError):
            terminated = {"exitCode": status, "reason": "Completed" if status == 0 else "Error"}
            self.server.set_pod(
                pod["metadata"]["name"],
                phase="Failed" if status else "Succeeded",
                containerStatuses=[container(terminated=terminated)],
            )

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
                process.wait(30)
