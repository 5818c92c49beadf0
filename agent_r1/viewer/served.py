"""The files of the page: in memory, and told to the browser before it asks for them.

A browser learns what a module imports when it has read the module; each depth of imports costs
one exchange. The page therefore names, as ``modulepreload``, every module that ``app.js`` imports
however deep, so that all of them are asked for at once. What ``import()`` asks for is not among
them: those modules belong to views that are opened later.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import dirname, join, normpath

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

_KINDS = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
_IMPORT = re.compile(r"""(?:\bfrom|^import)\s*"(\.[^"]+)";""", re.MULTILINE)
_FIRST = "app.js"
_PLACE = b"<!-- modules -->\n"


class Assets:
    """The files of a folder, as they were when it was made."""

    def __init__(self, folder: Path) -> None:
        paths = [path for path in folder.rglob("*") if path.is_file()]
        self._files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

    def page(self) -> bytes:
        """``index.html`` with the modules of its first view named at its head."""
        links = (
            f'<link rel="modulepreload" href="assets/{name}">\n' for name in self.imported(_FIRST)
        )
        return self._files["index.html"].replace(_PLACE, "".join(links).encode())

    def imported(self, name: str) -> list[str]:
        """What a module imports, and what that imports, each once; itself left out."""
        found, left = [name], [name]
        while left:
            module = left.pop(0)
            for target in _IMPORT.findall(self._files[module].decode()):
                other = normpath(join(dirname(module), target))
                if other not in found:
                    found.append(other)
                    left.append(other)
        return found[1:]

    async def serve(self, request: Request) -> Response:
        """The file that the address names, else 404."""
        name = request.path_params["name"]
        content = self._files.get(name)
        if content is None:
            return PlainTextResponse("There is no such file.\n", 404)
        return Response(content, media_type=_KINDS.get(Path(name).suffix, "text/plain"))
