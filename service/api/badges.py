"""Badges: the newest verdict of a suite on a branch, as an SVG image for a README."""

from fastapi import APIRouter, Response
from jinja2 import Environment

from service.api.access import READS
from service.api.problems import documented
from service.context import HasContext
from service.store import BranchSuite, CheckRepository, Status

router = APIRouter(tags=["badges"], responses=documented(401, 403, 422, 429, 503), dependencies=[READS])

COLORS = {"passed": "#1a7f37", "failed": "#cf222e", "error": "#9a6700", "unsupported": "#57606a", "running": "#0969da"}
UNKNOWN = "no check yet"
# Width of an average character, in pixels, and of the space around a text.
WIDTH, PADDING = 7, 10
# Newest checks that are searched for one with a verdict.
LOOK_BACK = 20

TEMPLATE = Environment(autoescape=True).from_string(
    """<svg xmlns="http://www.w3.org/2000/svg" width="{{ left + right }}" height="20" role="img" \
aria-label="{{ label }}: {{ message }}">
<title>{{ label }}: {{ message }}</title>
<rect width="{{ left }}" height="20" fill="#444c56"/>
<rect x="{{ left }}" width="{{ right }}" height="20" fill="{{ color }}"/>
<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">
<text x="{{ left / 2 }}" y="14">{{ label }}</text>
<text x="{{ left + right / 2 }}" y="14">{{ message }}</text>
</g>
</svg>
"""
)


@router.get("/badge/{owner}/{name}/{branch:path}/{suite}.svg", response_class=Response)
def badge(owner: str, name: str, branch: str, suite: str, context: HasContext) -> Response:
    """The verdict of the newest finished check that was not cancelled. The name of the branch may have slashes."""
    with context.database.read() as session:
        rows = CheckRepository(session).page(BranchSuite(f"{owner}/{name}", branch, suite), limit=LOOK_BACK)
    decided = [row.verdict for row in rows if row.status == Status.FINISHED and row.verdict != "cancelled"]
    message = decided[0] if decided else ("running" if rows else UNKNOWN)
    label = f"clipwatch {suite}"
    svg = TEMPLATE.render(
        label=label,
        message=message,
        color=COLORS.get(str(message), COLORS["unsupported"]),
        left=len(label) * WIDTH + PADDING,
        right=len(str(message)) * WIDTH + PADDING,
    )
    # GitHub serves images from a cache of its own, which would go on showing an old verdict.
    headers = {"Cache-Control": "no-cache, max-age=0", "Content-Security-Policy": "default-src 'none'"}
    return Response(svg, media_type="image/svg+xml", headers=headers)
