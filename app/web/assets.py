"""The files pages load: our own styles and modules, and Plotly's script out of its wheel, compressed once."""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import importlib.util
import re
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

STATIC = Path(__file__).with_name("static")
_FOREVER = "public, max-age=31536000, immutable"

router = APIRouter(include_in_schema=False)


class Static(StaticFiles):
    """Our own files, cacheable for ever: their addresses carry a digest of the content."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Answer with the file; an address without its digest is checked again each time."""
        response = await super().get_response(path, scope)
        versioned = scope.get("query_string", b"").startswith(b"v=")
        response.headers["Cache-Control"] = _FOREVER if versioned else "no-cache"
        return response


@cache
def static_url(name: str) -> str:
    """Return the address of a static file with a digest of its content."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return f"/static/{name}?v={digest}"


@cache
def plotly_version() -> str:
    """Return the version of the installed plotly wheel."""
    return importlib.metadata.version("plotly")


@cache
def plotly_script() -> Path:
    """Return the file of Plotly's script. Its wheel is looked up, never imported; its 4.6 MB are not kept in memory."""
    spec = importlib.util.find_spec("plotly")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the plotly wheel is not installed")
    return Path(spec.origin).parent / "package_data" / "plotly.min.js"


@cache
def plotly_style_ids() -> tuple[str, ...]:
    """Return the ids of style elements that the script would add to a page, unless elements with these ids exist."""
    found = re.findall(rb'getElementById\("([0-9a-f]{64})"\)', plotly_script().read_bytes())
    return tuple(sorted({id.decode() for id in found}))


@cache
def _plotly_compressed() -> bytes:
    return gzip.compress(plotly_script().read_bytes(), 6, mtime=0)


@router.get("/static/plotly.js")
def plotly(request: Request) -> Response:
    """Serve Plotly's script, compressed where the browser takes it."""
    headers = {"Cache-Control": _FOREVER, "Vary": "Accept-Encoding"}
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return FileResponse(plotly_script(), media_type="text/javascript", headers=headers)
    return Response(_plotly_compressed(), media_type="text/javascript", headers={**headers, "Content-Encoding": "gzip"})
