"""From a template to an answer."""

from collections.abc import Mapping
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import ChainableUndefined, Environment, PackageLoader

from service.web import formatting as words
from service.web.visitor import Visitor, set_cookie

# Nothing but our own files, and no inline script or style: a name or a log line can be shown, never run.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}

# Chainable: a document of an older version may lack a field, and its page is shown all the same.
templates = Environment(
    loader=PackageLoader("service.web"),
    autoescape=True,
    undefined=ChainableUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
templates.filters |= {
    "age": words.age,
    "count": words.count,
    "duration": words.duration,
    "instant": words.instant,
    "number": words.number,
}
templates.globals |= {
    "GATES": words.GATES,
    "GLYPHS": words.GLYPHS,
    "PLOTS": words.PLOTS,
    "SUBJECTS": words.SUBJECTS,
    "arm_text": words.arm_text,
    "hardware_text": words.hardware_text,
    "workload_text": words.workload_text,
}


def page(
    template: str,
    *,
    visitor: Visitor | None = None,
    status_code: int = 200,
    headers: Mapping[str, str] | None = None,
    **values: Any,
) -> HTMLResponse:
    """The template as a page that may load nothing from elsewhere. Its forms need to know the `visitor`."""
    html = templates.get_template(template).render(visitor=visitor, **values)
    response = HTMLResponse(html, status_code=status_code, headers=HEADERS | dict(headers or {}))
    if visitor is not None and visitor.new:
        set_cookie(response, visitor.secret, visitor.secure)
    return response
