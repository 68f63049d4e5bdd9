"""Who may call what: the dependencies that stand before every route that is not for everybody."""

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


async def identify(request: Request, credentials: Credentials) -> Caller:
    """Who calls, by a token; or, to look at something only, by the session of a browser. Counts the request, once."""
    context = await context_of(request)

    def counted() -> Caller:
        caller = _caller(request, context, credentials)
        context.limiter.request(caller.token or address_of(request))
        return caller

    if CALLER not in request.scope:
        # A thread where database or Redis may be asked, and only there: going to one takes longer than all the rest.
        waits = context.settings.auth_required or context.settings.effective_rate_limit
        request.scope[CALLER] = await run_in_threadpool(counted) if waits else counted()
    caller: Caller = request.scope[CALLER]
    return caller


HasCaller = Annotated[Caller, Depends(identify)]


def requires(scope: Scope) -> Callable[[Request, Credentials], Awaitable[None]]:
    """A dependency that refuses whoever has not this scope.

    It depends on nothing but the credentials: FastAPI solves every dependency of a dependency again for each that
    names it.
    """

    async def check(request: Request, credentials: Credentials) -> None:
        caller = await identify(request, credentials)
        if caller.may(scope):
            return
        if caller.token is None:
            raise unknown("this needs a token: Authorization: Bearer <token>")
        raise Refused(403, f"this needs a token with the scope {scope}")

    return check


READS = Depends(requires(Scope.READ))
SUBMITS = Depends(requires(Scope.SUBMIT))
ADMINISTERS = Depends(requires(Scope.ADMIN))


def unknown(detail: str) -> Refused:
    """A 401."""
    return Refused(401, detail, headers={"WWW-Authenticate": "Bearer"})


def by_token(context: Context, address: str, text: str) -> Caller | None:
    """Whose token this is. One that opens nothing counts as a guess; who guesses too often waits."""
    context.limiter.may_guess(address)
    caller = context.authenticator.by_token(text)
    if caller is None:
        context.limiter.guess(address)
    return caller


def address_of(request: Request) -> str:
    """Where a request comes from, as far as the server could tell."""
    return request.client.host if request.client else "?"


def refuse_other_sites(request: Request) -> None:
    """Refuses what a page of another site sends in the name of whoever looks at it, where browsers say so."""
    if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        raise Refused(403, "this is for the pages of Clipwatch itself")


def _caller(request: Request, context: Context, credentials: HTTPAuthorizationCredentials | None) -> Caller:
    authenticator = context.authenticator
    if context.settings.auth_required and credentials is not None:
        caller = by_token(context, address_of(request), credentials.credentials)
        if caller is None:
            raise unknown("this token is unknown, revoked or expired")
        return caller
    if request.method not in SAFE:
        # A browser sends cookies along whoever made it send: they are no proof here, as there is no form's token.
        refuse_other_sites(request)
        return authenticator.stranger
    cookie = request.cookies.get(COOKIE) if context.settings.auth_required else None
    return (cookie and authenticator.by_session(cookie)) or authenticator.stranger
