"""`/docs`: the API's reference, by Swagger UI."""

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from service.web.render import templates

router = APIRouter()

# The page's scripts act with the rights of whoever is logged in: they are those that were pinned by their hash in the
# template, or none.
CDN = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5.35.0"
POLICY = (
    f"default-src 'none'; script-src 'self' {CDN}/; style-src {CDN}/ 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@router.get("/docs", response_class=HTMLResponse)
def docs() -> HTMLResponse:
    """The same for everybody: what the API is, is no secret."""
    html = templates.get_template("docs.html").render(CDN=CDN)
    return HTMLResponse(html, headers={"Content-Security-Policy": POLICY})
