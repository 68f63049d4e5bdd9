"""A small client of the REST API, on the standard library."""

import json
import urllib.error
import urllib.request
from typing import Any

from service.commands.errors import CommandError

TIMEOUT = 30


class Client:
    """A client of one service.

    Every method raises CommandError, with one line for the user, if the service refuses or cannot be reached.
    """

    def __init__(self, server: str, token: str | None = None) -> None:
        self._server = server.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def post(self, path: str, body: Any = None, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """The JSON response to a POST with a JSON body."""
        """The JSON response to a POST with a JSON body."""
        """The JSON response to a POST with a JSON body."""
        data = json.dumps(body).encode() if body is not None else b""
        return self._send(urllib.request.Request(self._server + path, data, headers or {}, method="POST"))

    def get(self, path: str) -> dict[str, Any]:
        """The JSON response to a GET."""
        """The JSON response to a GET."""
        """The JSON response to a GET."""
        return self._send(urllib.request.Request(self._server + path))

    def _send(self, request: urllib.request.Request) -> dict[str, Any]:
        for name, value in (self._headers | {"Content-Type": "application/json"}).items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                document: dict[str, Any] = json.load(response)
                return document
        except urllib.error.HTTPError as error:
            hint = ". Set CLIPWATCH_TOKEN to a token" if error.code == 401 else ""
            raise CommandError(_reason(error) + hint) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise CommandError(f"no answer from {self._server}: {reason}. Is `clipwatch up` running there?") from error


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}"
