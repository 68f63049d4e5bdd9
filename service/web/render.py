"""Renders a template as an HTML response."""

from collections.abc import Mapping
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import ChainableUndefined, Environment, PackageLoader

from service.contract import GATES, PLOTS
from service.web import formatting
from service.web.visitor import Visitor, set_cookie

# Only files of this site, and no inline script or style, so that a name or a line of a log is never run as code.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}

# ChainableUndefined: a document that an older version stored may lack a field, and its page must still be rendered.
templates = Environment(
    loader=PackageLoader("service.web"),
    autoescape=True,
    undefined=ChainableUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
templates.filters |= {
    "age": formatting.age,
    "count": formatting.count,
    "duration": formatting.duration,
    "instant": formatting.instant,
    "number": formatting.number,
}
templates.globals |= {
    "GATES": GATES,
    "GLYPHS": formatting.GLYPHS,
    "PLOTS": PLOTS,
    "SUBJECTS": formatting.SUBJECTS,
    "arm_text": formatting.arm_text,
    "location_text": formatting.location_text,
    "workload_text": formatting.workload_text,
}


def page(
    template: str,
    *,
    visitor: Visitor | None = None,
    status_code: int = 200,
    headers: Mapping[str, str] | None = None,
    **values: Any,
) -> HTMLResponse:
    """The template as a page that loads nothing from other sites. Templates with forms need the `visitor`."""
    html = templates.get_template(template).render(visitor=visitor, **values)
    response = HTMLResponse(html, status_code=status_code, headers=HEADERS | dict(headers or {}))
    if visitor is not None and visitor.new:
        set_cookie(response, visitor.secret, visitor.secure)
    return response
