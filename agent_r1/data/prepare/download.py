"""Fetch a published file once; what is in the cache is whole."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

from agent_r1.data.prepare.catalogue import Address
from agent_r1.errors import DataError

if TYPE_CHECKING:
    import httpx

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""``(name, bytes so far, bytes in all if known)``."""

_HUB = "https://huggingface.co"
_CHUNK = 1 << 16
_CONNECT_S, _READ_S = 10.0, 60.0


class Unavailable(DataError):
    """A file can be had from none of its addresses."""


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/agent-r1/data``, by default below ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "agent-r1" / "data"


class Downloader:
    """Fetches files into a cache folder.

    ``HF_ENDPOINT`` names a mirror of the Hugging Face hub; proxies are those of the
    environment. With ``offline`` only the cache is asked. A host that could not be
    connected to is not tried again.
    """

    def __init__(
        self,
        cache: Path | None = None,
        *,
        offline: bool = False,
        progress: Progress | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._cache = cache or cache_folder()
        self._offline = offline
        self._progress = progress or (lambda name, done, total: None)
        self._transport = transport
        self._unreachable: dict[str, str] = {}

    def fetch(self, addresses: Sequence[Address]) -> tuple[Path, Address]:
        """The file at the first address that has it, and that address.

        Raises:
            Unavailable: says of each address what went wrong.
        """
        for address in addresses:
            if (cached := self._place(address)).is_file():
                return cached, address
        problems: list[str] = []
        for address in addresses:
            try:
                return self._download(address), address
            except Unavailable as problem:
                problems.append(str(problem))
        raise Unavailable("; ".join(problems))

    def _place(self, address: Address) -> Path:
        """The address, revision included, names the place."""
        digest = hashlib.blake2b(address.url.encode(), digest_size=8).hexdigest()
        return self._cache / digest / address.url.rpartition("/")[2]

    def _download(self, address: Address) -> Path:
        import httpx

        endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or _HUB
        url = address.url.replace(_HUB, endpoint, 1)
        host = urlsplit(url).netloc
        if self._offline:
            raise Unavailable(f"{url} is not in the cache, and downloads are disabled (--offline)")
        if host in self._unreachable:
            raise Unavailable(self._unreachable[host])
        place = self._place(address)
        part = place.with_name(f".{place.name}.{os.getpid()}.part")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            found = self._stream(url, part)
            if address.sha256 not in (None, found):
                raise Unavailable(
                    f"{url} is not the file it was (SHA-256 {found}, expected {address.sha256})"
                )
            part.replace(place)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            self._unreachable[host] = f"{host} cannot be reached ({_words(error)})"
            raise Unavailable(self._unreachable[host]) from error
        except (httpx.HTTPError, OSError) as error:
            raise Unavailable(f"{url}: {_words(error)}") from error
        finally:
            part.unlink(missing_ok=True)
        return place

    def _stream(self, url: str, target: Path) -> str:
        """Write the body to ``target``; returns its SHA-256."""
        import httpx

        digest, done = hashlib.sha256(), 0
        timeout = httpx.Timeout(_READ_S, connect=_CONNECT_S)
        name = url.rpartition("/")[2]
        with (
            httpx.Client(
                follow_redirects=True, timeout=timeout, transport=self._transport
            ) as client,
            client.stream("GET", url) as response,
            target.open("wb") as file,
        ):
            if response.is_error:
                raise Unavailable(f"{url} answers {response.status_code}")
            length = response.headers.get("content-length")
            total = int(length) if length and "content-encoding" not in response.headers else None
            for chunk in response.iter_bytes(_CHUNK):
                file.write(chunk)
                digest.update(chunk)
                self._progress(name, done := done + len(chunk), total)
        if total is not None and done != total:
            raise Unavailable(f"{url} broke off after {done} of {total} bytes")
        return digest.hexdigest()


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
