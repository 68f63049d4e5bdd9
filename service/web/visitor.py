"""Who looks at a page. One cookie carries a secret: the forms of a page are bound to it, and logging in is too."""

import hmac
import re
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlencode

from fastapi import Depends, Form, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from service.api.access import COOKIE, address_of, refuse_other_sites
from service.api.problems import Refused
from service.auth import UNRESTRICTED, Caller, Scope, csrf_of, new_secret
from service.context import HasContext

SECRET = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True)
class Visitor:
    """A browser. `secret` is its cookie's; `new` when it has none yet."""

    caller: Caller
    secret: str
    new: bool
    secure: bool

    @property
    def csrf(self) -> str:
        return csrf_of(self.secret)

    @property
    def known(self) -> bool:
        """Whether somebody is logged in."""
        return self.caller.token is not None

    @property
    def open(self) -> bool:
        """Whether nobody has to log in."""
        return self.caller is UNRESTRICTED

    @property
    def may_submit(self) -> bool:
        return self.caller.may(Scope.SUBMIT)


def identify(request: Request, context: HasContext) -> Visitor:
    """The visitor. Counts the request."""
    cookie = request.cookies.get(COOKIE, "")
    secret = cookie if SECRET.fullmatch(cookie) else None
    caller = (secret and context.settings.auth_required and context.authenticator.by_session(secret)) or None
    visitor = Visitor(
        caller or context.authenticator.stranger, secret or new_secret(), secret is None, request.url.scheme == "https"
    )
    context.limiter.request(visitor.caller.token or address_of(request))
    return visitor


HasVisitor = Annotated[Visitor, Depends(identify)]


class LoginNeeded(HTTPException):
    """Leads to the login page, and from there back to where this was raised."""

    def __init__(self, request: Request) -> None:
        # A form that was sent cannot be sent again: its answer leads back to the page it is on.
        back = request.url.path if request.method == "GET" else "/"
        query = f"?{request.url.query}" if request.method == "GET" and request.url.query else ""
        where = f"/login?{urlencode({'next': back + query})}"
        super().__init__(303, "log in first", {"Location": where})


def reader(request: Request, visitor: HasVisitor) -> Visitor:
    """A visitor who may look."""
    if not visitor.caller.may(Scope.READ):
        raise LoginNeeded(request)
    return visitor


Reader = Annotated[Visitor, Depends(reader)]


def genuine(request: Request, visitor: HasVisitor, csrf: Annotated[str, Form()] = "") -> Visitor:
    """A visitor who sent a form of a page that was made for them."""
    refuse_other_sites(request)
    if not hmac.compare_digest(csrf.encode(), visitor.csrf.encode()):
        raise Refused(403, "this form is not of a page that was made for you: load the page again")
    return visitor


Genuine = Annotated[Visitor, Depends(genuine)]


def submitter(request: Request, visitor: Genuine) -> Visitor:
    """A visitor who pressed a button and may."""
    if not visitor.may_submit:
        if visitor.known:
            raise Refused(403, "your token may only look: this needs one with the scope submit")
        raise LoginNeeded(request)
    return visitor


Submitter = Annotated[Visitor, Depends(submitter)]


def set_cookie(response: Response, secret: str, secure: bool) -> None:
    """Hands the secret to the browser, to no script of it, until it is closed."""
    # Lax: whoever follows a link from elsewhere is still logged in; forms are held by their token.
    response.set_cookie(COOKIE, secret, httponly=True, samesite="lax", secure=secure)
