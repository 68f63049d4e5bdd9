"""The visitor of a page. One cookie carries a secret; forms are bound to it, and a login session belongs to it."""

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
    """A browser. `secret` is the one in its cookie; `new` says that the browser has no cookie yet."""

    caller: Caller
    secret: str
    new: bool
    secure: bool

    @property
    def csrf(self) -> str:
        """The token that this visitor's forms carry."""
        return csrf_of(self.secret)

    @property
    def known(self) -> bool:
        """Whether the visitor is logged in."""
        return self.caller.token is not None

    @property
    def open(self) -> bool:
        """Whether this service needs no login."""
        return self.caller is UNRESTRICTED

    @property
    def may_submit(self) -> bool:
        """Whether the visitor may submit, cancel and rerun."""
        return self.caller.may(Scope.SUBMIT)


def identify_visitor(request: Request, context: HasContext) -> Visitor:
    """The visitor. Counts the request.

    Raises:
        TooMany: the visitor has used up the rate limit.
    """
    cookie = request.cookies.get(COOKIE, "")
    secret = cookie if SECRET.fullmatch(cookie) else None
    caller = (secret and context.settings.auth_required and context.authenticator.by_session(secret)) or None
    visitor = Visitor(
        caller or context.authenticator.anonymous,
        secret or new_secret(),
        secret is None,
        request.url.scheme == "https",
    )
    context.limiter.request(visitor.caller.token or address_of(request))
    return visitor


HasVisitor = Annotated[Visitor, Depends(identify_visitor)]


class LoginNeeded(HTTPException):
    """Redirects to the login page, which then redirects to the page where this was raised."""

    def __init__(self, request: Request) -> None:
        # A form cannot be sent again after the login, so a POST leads to the first page.
        back = request.url.path if request.method == "GET" else "/"
        query = f"?{request.url.query}" if request.method == "GET" and request.url.query else ""
        where = f"/login?{urlencode({'next': back + query})}"
        super().__init__(303, "log in first", {"Location": where})


def reader(request: Request, visitor: HasVisitor) -> Visitor:
    """A visitor who may look.

    Raises:
        LoginNeeded: the visitor has to log in for that.
    """
    if not visitor.caller.may(Scope.READ):
        raise LoginNeeded(request)
    return visitor


Reader = Annotated[Visitor, Depends(reader)]


def genuine(request: Request, visitor: HasVisitor, csrf: Annotated[str, Form()] = "") -> Visitor:
    """A visitor who sent a form from a page that was rendered for them.

    Raises:
        Refused: 403, the form comes from another site or another visitor.
    """
    refuse_other_sites(request)
    if not hmac.compare_digest(csrf.encode(), visitor.csrf.encode()):
        raise Refused(403, "this form is not of a page that was made for you: load the page again")
    return visitor


Genuine = Annotated[Visitor, Depends(genuine)]


def submitter(request: Request, visitor: Genuine) -> Visitor:
    """A visitor who sent a form and has the scope `submit`.

    Raises:
        Refused: 403, the visitor's token has a smaller scope.
        LoginNeeded: the visitor has to log in for that.
    """
    if not visitor.may_submit:
        if visitor.known:
            raise Refused(403, "your token may only look: this needs one with the scope submit")
        raise LoginNeeded(request)
    return visitor


def set_cookie(response: Response, secret: str, secure: bool) -> None:
    """Sets the cookie with the secret. Scripts cannot read it; it is gone when the browser is closed."""
    # Lax: a visitor who follows a link from another site is still logged in. Forms are protected by their CSRF token.
    response.set_cookie(COOKIE, secret, httponly=True, samesite="lax", secure=secure)
