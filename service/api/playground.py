"""The two pages: the playground at `/`, the interface's documentation at `/docs`; files without a build step.

The policy lets a page load what this service serves and nothing else: no inline script, no style attribute, no other
host. The documentation is Swagger UI, which the package fastapi-offline brings along: it runs in the origin in which
the playground keeps a key, so its scripts come from here, and it may send nowhere else. Browsers ask at each use
whether a file has changed, so that a new version shows at once; a 304 costs little.
"""

from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from service.api.bodies import JsonRoute

router = APIRouter(route_class=JsonRoute, include_in_schema=False)
_FILES = StaticFiles(directory=Path(__file__).parent.parent / "web", check_dir=False)
_SWAGGER_FILES = StaticFiles(packages=[("fastapi_offline", "static")])
_SWAGGER_NAMES = frozenset({"swagger-ui-bundle.js", "swagger-ui.css"})  # the package has a second viewer as well
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_DOCS_POLICY = _POLICY.replace("img-src 'self'", "img-src 'self' data:")  # Swagger UI's style sheet holds its icons
_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@router.get("/")
async def page(request: Request) -> Response:
    """The page itself."""
    return await _file(_FILES, "index.html", request)


@router.get("/web/{file}")
async def asset(file: str, request: Request) -> Response:
    """A script, style sheet or picture of the pages."""
    return await _file(_FILES, file, request)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """What the OpenAPI document says, for people."""
    return await _file(_FILES, "docs.html", request, policy=_DOCS_POLICY)


@router.get("/docs/{file}")
async def docs_asset(file: str, request: Request) -> Response:
    """A file of Swagger UI."""
    if file not in _SWAGGER_NAMES:
        raise HTTPException(404)
    return await _file(_SWAGGER_FILES, file, request, policy=_DOCS_POLICY)


async def _file(files: StaticFiles, file: str, request: Request, *, policy: str = _POLICY) -> Response:
    response = await files.get_response(file, request.scope)
    response.headers.update(_HEADERS | {"Content-Security-Policy": policy})
    return response
