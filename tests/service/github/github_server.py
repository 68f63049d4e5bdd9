"""A server for the part of GitHub's REST API that is used: stores what it receives, and fails when asked to."""

import itertools
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from tests.waiting import until

APP_TOKEN = "installation-token"
TOKEN = "plain-token"
APP = {"login": "clipwatch[bot]", "type": "Bot"}
USER = {"login": "clipwatch-user", "type": "User"}


@dataclass(frozen=True)
class Hook:
    """A notification that came to `/hook`."""

    body: bytes
    headers: dict[str, str]


@dataclass
class GitHubServer:
    """What GitHub would have. `failures` answer the next requests; `requests` are those that came.

    `permissions` by login: who is not in it may read a public repository. `heads` by number of a pull request.
    """

    url: str = ""
    public_key: str = ""
    check_runs: dict[int, dict[str, Any]] = field(default_factory=dict)
    statuses: list[dict[str, Any]] = field(default_factory=list)
    comments: dict[int, dict[str, Any]] = field(default_factory=dict)
    hooks: list["Hook"] = field(default_factory=list)
    failures: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    permissions: dict[str, str] = field(default_factory=dict)
    heads: dict[int, str] = field(default_factory=dict)
    ids: Any = field(default_factory=lambda: itertools.count(1001))

    def app(self) -> FastAPI:
        app = FastAPI()
        repo = "/repos/{owner}/{name}"

        @app.middleware("http")
        async def gate(request: Request, call_next: Any) -> Any:
            self.requests.append(f"{request.method} {request.url.path}")
            if self.failures:
                status, headers = self.failures.pop(0)
                return JSONResponse({"message": "made to fail"}, status, headers)
            given = request.headers.get("authorization", "")
            _, _, token = given.partition(" ")
            if "installation" in request.url.path:
                jwt.decode(token, self.public_key, algorithms=["RS256"])
            elif request.url.path.startswith("/repos") and token not in (APP_TOKEN, TOKEN):
                return JSONResponse({"message": "Bad credentials"}, 401)
            elif "check-runs" in request.url.path and token != APP_TOKEN:
                return JSONResponse({"message": "You must authenticate via a GitHub App."}, 403)
            return await call_next(request)

        @app.get(repo + "/installation")
        def installation(owner: str, name: str) -> Any:
            return {"id": 7, "app_id": 1, "target_type": "Organization"}

        @app.post("/app/installations/{number}/access_tokens", status_code=201)
        def token(number: int) -> Any:
            return {"token": APP_TOKEN, "expires_at": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}

        @app.post(repo + "/check-runs", status_code=201)
        async def make_run(request: Request) -> Any:
            run = {"id": next(self.ids), **await request.json()}
            self.check_runs[run["id"]] = run
            return run

        @app.get(repo + "/check-runs/{number}")
        def get_run(number: int) -> Any:
            return self.check_runs.get(number) or JSONResponse({"message": "Not Found"}, 404)

        @app.patch(repo + "/check-runs/{number}")
        async def edit_run(number: int, request: Request) -> Any:
            if number not in self.check_runs:
                return JSONResponse({"message": "Not Found"}, 404)
            self.check_runs[number] |= await request.json()
            return self.check_runs[number]

        @app.get(repo + "/commits/{sha}/check-runs")
        def list_runs(sha: str, check_name: str) -> Any:
            runs = [r for r in self.check_runs.values() if r["head_sha"] == sha and r["name"] == check_name]
            return {"total_count": len(runs), "check_runs": runs}

        @app.post(repo + "/statuses/{sha}", status_code=201)
        async def make_status(sha: str, request: Request) -> Any:
            status = {"id": next(self.ids), "sha": sha, **await request.json()}
            self.statuses.append(status)
            return status

        @app.get(repo + "/issues/{pull}/comments")
        def list_comments(pull: int) -> Any:
            return [one for one in self.comments.values() if one["pull"] == pull]

        @app.post(repo + "/issues/{pull}/comments", status_code=201)
        async def make_comment(pull: int, request: Request) -> Any:
            user = APP if request.headers["authorization"].endswith(APP_TOKEN) else USER
            comment = {"id": next(self.ids), "pull": pull, "user": user, **await request.json()}
            self.comments[comment["id"]] = comment | {"url": f"{self.url}/repos/o/r/issues/comments/{comment['id']}"}
            return self.comments[comment["id"]]

        @app.get(repo + "/issues/comments/{number}")
        def get_comment(number: int) -> Any:
            return self.comments.get(number) or JSONResponse({"message": "Not Found"}, 404)

        @app.patch(repo + "/issues/comments/{number}")
        async def edit_comment(number: int, request: Request) -> Any:
            self.comments[number] |= await request.json()
            return self.comments[number]

        @app.get(repo + "/collaborators/{login}/permission")
        def permission(login: str) -> Any:
            given = self.permissions.get(login, "read")
            # As GitHub's documentation has it: `permission` knows no `maintain` and no `triage`.
            legacy = {"maintain": "write", "triage": "read"}.get(given, given)
            return {"permission": legacy, "role_name": given, "user": {"login": login, "type": "User"}}

        @app.get(repo + "/pulls/{number}")
        def get_pull(number: int) -> Any:
            if number not in self.heads:
                return JSONResponse({"message": "Not Found"}, 404)
            return {"number": number, "state": "open", "head": {"ref": "topic", "sha": self.heads[number]}}

        @app.get("/user")
        def user() -> Any:
            return USER

        @app.post("/hook")
        async def hook(request: Request) -> Any:
            self.hooks.append(Hook(await request.body(), dict(request.headers)))
            return {}

        return app


@contextmanager
def github_server() -> Iterator[GitHubServer]:
    """The server on a port of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        github = GitHubServer(url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        server = uvicorn.Server(uvicorn.Config(github.app(), log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        until(lambda: server.started)
        yield github
        server.should_exit = True
        thread.join(10)
