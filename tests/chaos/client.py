"""A client that does not give up: it repeats a request until the API has answered it."""

import json
import time
import urllib.error
import urllib.request
from typing import Any

GIVE_UP_SECONDS = 120


def post(url: str, body: Any = None, key: str | None = None) -> tuple[int, dict[str, Any]]:
    """Status and document of the first answer that is no failure of the server. Raises TimeoutError without one."""
    data = b"" if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while time.monotonic() < deadline:
        request = urllib.request.Request(url, data, headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            if error.code < 500:
                return error.code, json.load(error)
        except (OSError, ValueError):
            pass
        time.sleep(0.1)
    raise TimeoutError(f"no answer from {url} within {GIVE_UP_SECONDS} s")
