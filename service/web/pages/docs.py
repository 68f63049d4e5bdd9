"""`/docs`: the reference of the API, rendered by Swagger UI."""

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from service.web.render import templates

router = APIRouter()

# Scripts of this page act with the rights of the visitor, so the template names the hash of each: a browser runs no
# other file that the CDN may serve.
CDN = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5.35.0"
POLICY = (
    f"default-src 'none'; script-src 'self' {CDN}/; style-src {CDN}/ 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@router.get("/docs", response_class=HTMLResponse)
def docs() -> HTMLResponse:
    """The page. It is open to all: the description of the API is no secret."""
    html = templates.get_template("docs.html").render(CDN=CDN)
    return HTMLResponse(html, headers={"Content-Security-Policy": POLICY})
