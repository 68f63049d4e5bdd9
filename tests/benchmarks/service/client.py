"""A client that costs little: kept connections, no parsing, and the time of every answer."""

import http.client
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

HEADERS = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Request:
    """`body` is sent as JSON; `status` is the one that the answer must have."""

    method: str
    path: str
    body: bytes | None = None
    status: int = 200


class Client:
    """One connection to a server of this machine."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def send(self, request: Request) -> tuple[float, bytes]:
        """Seconds until the whole answer was there, and the answer. Raises AssertionError for another status."""
        begun = time.perf_counter()
        self._connection.request(request.method, request.path, request.body, HEADERS)
        response = self._connection.getresponse()
        answer = response.read()
        seconds = time.perf_counter() - begun
        assert response.status == request.status, f"{request.path}: {response.status} {answer[:200]!r}"
        return seconds, answer

    def close(self) -> None:
        self._connection.close()


def rate(port: int, requests: Sequence[Request], connections: int) -> float:
    """Answers per second when as many connections send the requests as fast as they are answered."""

    def send(share: Sequence[Request]) -> None:
        client = Client(port)
        for request in share:
            client.send(request)
        client.close()

    begun = time.perf_counter()
    with ThreadPoolExecutor(connections) as threads:
        for done in [threads.submit(send, requests[start::connections]) for start in range(connections)]:
            done.result()
    return len(requests) / (time.perf_counter() - begun)
