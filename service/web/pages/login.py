"""`/login` and `/logout`."""

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from service.api.access import COOKIE, address_of, by_token
from service.auth import new_secret
from service.context import HasContext
from service.web.render import page
from service.web.visitor import Genuine, HasVisitor, Visitor, set_cookie

router = APIRouter()


@router.get("/login", response_class=HTMLResponse)
def login_page(visitor: HasVisitor, next: str = "/") -> Response:
    """The page with the login form; where no login is needed, a redirect to `next`."""
    return RedirectResponse(_local(next), 303) if visitor.open else _login_form(visitor, next)


@router.post("/login", response_class=HTMLResponse)
def login(
    request: Request,
    context: HasContext,
    visitor: Genuine,
    token: Annotated[str, Form()] = "",
    next: Annotated[str, Form()] = "/",
) -> Response:
    """Begins a session for a visitor with a token."""
    caller = by_token(context, address_of(request), token.strip())
    if caller is None:
        return _login_form(visitor, next, wrong=True)
    # A new secret: an attacker who planted the old one would be logged in with this visitor.
    secret = new_secret()
    context.authenticator.log_in(caller, secret)
    response = RedirectResponse(_local(next), 303)
    set_cookie(response, secret, visitor.secure)
    return response


@router.post("/logout")
def logout(context: HasContext, visitor: Genuine) -> RedirectResponse:
    """Ends the session."""
    context.authenticator.log_out(visitor.secret)
    response = RedirectResponse("/", 303)
    response.delete_cookie(COOKIE)
    return response


def _login_form(visitor: Visitor, next: str, *, wrong: bool = False) -> HTMLResponse:
    return page("login.html", visitor=visitor, status_code=401 if wrong else 200, next=_local(next), wrong=wrong)


def _local(path: str) -> str:
    """The path if it is one of this site, else `/`: a login link must not lead to another site."""
    is_local = path.startswith("/") and not path.startswith("//") and "\\" not in path and path.isprintable()
    return path if is_local else "/"
