"""Middleware around everything: headers that tell browsers what not to do, and who is let in without a token."""

import ipaddress
from functools import lru_cache

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# An answer that says otherwise keeps what it says.
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
# What comes with a signature needs no other proof of where it comes from.
SIGNED = "/webhooks/"


class SecurityHeaders:
    """Adds the headers of `DEFAULTS` to every answer, and over TLS that there is to be nothing but TLS."""

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
    """Keeps the rest of the world out of a service that asks for no token because only this machine can reach it.

    Two ways lead there all the same: a proxy in front of it, and a page whose name its owner points to 127.0.0.1
    (DNS rebinding). Both show: in headers that proxies add, and in a `Host` that is a name of the Internet.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(SIGNED) or _is_local(scope):
            await self._app(scope, receive, send)
            return
        answer = PlainTextResponse(
            "Clipwatch asks for no token here and so answers this machine alone, neither proxies nor other names. "
            "CLIPWATCH_AUTH=required asks for tokens, CLIPWATCH_AUTH=off lets everybody in.\n",
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
        # A name without a dot is none of the Internet's.
        return "." not in host or host.endswith(".localhost")
