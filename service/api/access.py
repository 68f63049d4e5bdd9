"""Access control: the dependencies of every route that is not open to all."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.api.problems import Refused
from service.auth import Caller, Scope
from service.context import Context, context_of

COOKIE = "clipwatch"
CALLER = "clipwatch.caller"
SAFE = ("GET", "HEAD", "OPTIONS")

bearer = HTTPBearer(auto_error=False, description="A token, made with `clipwatch token create`")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]


async def identify_caller(request: Request, credentials: Credentials) -> Caller:
    """The caller by a token, or for a request that only reads by the session of a browser. Counts the request, once.

    Raises:
        Refused: 401, the token is not valid.
        TooMany: the caller has used up the rate limit.
    """
    context = await context_of(request)

    def counted() -> Caller:
        caller = _caller(request, context, credentials)
        context.limiter.request(caller.token or address_of(request))
        return caller

    if CALLER not in request.scope:
        # In a thread only where the database or Redis may be asked: changing threads takes longer than all the rest.
        waits = context.settings.auth_required or context.settings.effective_rate_limit
        request.scope[CALLER] = await run_in_threadpool(counted) if waits else counted()
    caller: Caller = request.scope[CALLER]
    return caller


HasCaller = Annotated[Caller, Depends(identify_caller)]


def requires(scope: Scope) -> Callable[[Request, Credentials], Awaitable[None]]:
    """A dependency that refuses a caller without this scope.

    It depends on the credentials alone: FastAPI solves the dependencies of a dependency again for each route that
    names it.
    """

    async def check(request: Request, credentials: Credentials) -> None:
        caller = await identify_caller(request, credentials)
        if caller.may(scope):
            return
        if caller.token is None:
            raise unauthorized("this needs a token: Authorization: Bearer <token>")
        raise Refused(403, f"this needs a token with the scope {scope}")

    return check


READS = Depends(requires(Scope.READ))
SUBMITS = Depends(requires(Scope.SUBMIT))
ADMINISTERS = Depends(requires(Scope.ADMIN))


def unauthorized(detail: str) -> Refused:
    """A 401."""
    return Refused(401, detail, headers={"WWW-Authenticate": "Bearer"})


def by_token(context: Context, address: str, text: str) -> Caller | None:
    """The caller with this token; None if the token is not valid, which counts as a guess from this address.

    Raises:
        TooMany: there were too many guesses from this address.
    """
    context.limiter.may_guess(address)
    caller = context.authenticator.by_token(text)
    if caller is None:
        context.limiter.guess(address)
    return caller


def address_of(request: Request) -> str:
    """The address that a request comes from, as far as the server knows it."""
    return request.client.host if request.client else "?"


def refuse_other_sites(request: Request) -> None:
    """Refuses a request that a browser sends for a page of another site, if the browser says so.

    Raises:
        Refused: 403.
    """
    if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        raise Refused(403, "this is for the pages of Clipwatch itself")


def _caller(request: Request, context: Context, credentials: HTTPAuthorizationCredentials | None) -> Caller:
    authenticator = context.authenticator
    if context.settings.auth_required and credentials is not None:
        caller = by_token(context, address_of(request), credentials.credentials)
        if caller is None:
            raise unauthorized("this token is unknown, revoked or expired")
        return caller
    if request.method not in SAFE:
        # A cookie proves nothing here: a browser sends it whichever site made the request, and there is no CSRF token.
        refuse_other_sites(request)
        return authenticator.anonymous
    cookie = request.cookies.get(COOKIE) if context.settings.auth_required else None
    return (cookie and authenticator.by_session(cookie)) or authenticator.anonymous
