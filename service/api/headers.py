"""Middleware around the whole app: security headers, and protection of a service that requires no token."""

import ipaddress
from functools import lru_cache

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A response that sets one of these headers itself keeps its own value.
DEFAULTS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
YEAR = 31_536_000
RAW = [(name.lower().encode(), value.encode()) for name, value in DEFAULTS.items()]
SECURE = [*RAW, (b"strict-transport-security", f"max-age={YEAR}".encode())]
# Requests below this path carry a signature, which proves where they come from.
SIGNED = "/webhooks/"


class SecurityHeaders:
    """Adds the headers of `DEFAULTS` to every response, and to a response over TLS also HSTS."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.setdefault("headers", [])
                there = {name for name, _ in headers}
                headers += [pair for pair in (SECURE if scope["scheme"] == "https" else RAW) if pair[0] not in there]
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


class LocalOnly:
    """Refuses requests from elsewhere to a service that requires no token because it listens on a loopback address.

    Such requests can come through a proxy on this machine, or from a web page whose domain name resolves to 127.0.0.1
    (DNS rebinding). A proxy adds headers; DNS rebinding shows in a `Host` header with a public domain name.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(SIGNED) or _is_local(scope):
            await self._app(scope, receive, send)
            return
        answer = PlainTextResponse(
            "Clipwatch requires no token here, so it answers requests from this machine only: no proxies, no other "
            "host names. Set CLIPWATCH_AUTH=required to require tokens, or CLIPWATCH_AUTH=off to admit everyone.\n",
            status_code=421,
        )
        await answer(scope, receive, send)


def _is_local(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    if "forwarded" in headers or "x-forwarded-for" in headers:
        return False
    return _names_this_machine(Request(scope).url.hostname or "")


@lru_cache(maxsize=100)
def _names_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # A name without a dot is not a public domain name.
        return "." not in host or host.endswith(".localhost")
