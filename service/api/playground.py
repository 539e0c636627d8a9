"""The playground: static files of this package at `/` and `/web`, without a build step.

The policy lets the page load what this service serves and nothing else: no inline script, no style attribute, no other
host. Browsers ask at each use whether a file has changed, so that a new version shows at once; a 304 costs little.
"""

from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.staticfiles import StaticFiles

from service.api.bodies import JsonRoute

router = APIRouter(route_class=JsonRoute, include_in_schema=False)
_FILES = StaticFiles(directory=Path(__file__).parent.parent / "web", check_dir=False)
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@router.get("/")
async def page(request: Request) -> Response:
    """The page itself."""
    return await _file("index.html", request)


@router.get("/web/{file}")
async def asset(file: str, request: Request) -> Response:
    """A script, style sheet or picture of the page."""
    return await _file(file, request)


async def _file(file: str, request: Request) -> Response:
    response = await _FILES.get_response(file, request.scope)
    response.headers.update(_HEADERS)
    return response
