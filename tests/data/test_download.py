"""Published files are fetched once, whole, and from where they are."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from agent_r1.data.prepare.catalogue import SOURCES, Address, source_named
from agent_r1.data.prepare.download import Downloader, Unavailable

GOOD = b'{"question": "1 + 1?", "answer": "#### 2"}\n'


class Web:
    """Answers by path; remembers what it was asked for."""

    def __init__(self, pages):
        self.pages, self.asked = pages, []

    def __call__(self, request):
        self.asked.append(str(request.url))
        page = self.pages.get(request.url.path)
        if isinstance(page, Exception):
            raise page
        return httpx.Response(200, content=page) if page is not None else httpx.Response(404)


def downloader(folder, pages, **options):
    web = Web(pages)
    return Downloader(folder, transport=httpx.MockTransport(web), **options), web


def test_a_file_is_fetched_once_and_whole(tmp_path):
    seen = []
    fetcher, web = downloader(
        tmp_path, {"/a.jsonl": GOOD}, progress=lambda *told: seen.append(told)
    )
    address = Address("https://one.test/a.jsonl")
    path, used = fetcher.fetch([address])
    assert path.read_bytes() == GOOD and used is address
    assert seen[-1] == ("a.jsonl", len(GOOD), len(GOOD))
    again, _ = downloader(tmp_path, {}, offline=True)
    assert again.fetch([address])[0] == path
    assert len(web.asked) == 1
    assert [p.name for p in path.parent.iterdir()] == ["a.jsonl"]


def test_the_next_address_is_tried_and_a_wrong_file_is_not_kept(tmp_path):
    wrong = Address("https://one.test/a.jsonl", "0" * 64)
    right = Address("https://two.test/b.jsonl")
    fetcher, _ = downloader(tmp_path, {"/a.jsonl": b"changed", "/b.jsonl": GOOD})
    assert fetcher.fetch([wrong, right])[1] is right
    with pytest.raises(Unavailable, match=r"is not the file it was \(SHA-256 .* expected 0000"):
        fetcher.fetch([wrong])
    assert not [p for p in tmp_path.rglob("*") if "a.jsonl" in p.name]


def test_an_unreachable_host_is_tried_once(tmp_path):
    gone = httpx.ConnectError("no route")
    fetcher, web = downloader(tmp_path, {"/a": gone, "/b": gone})
    for name in "ab":
        with pytest.raises(Unavailable, match=r"one\.test cannot be reached \(ConnectError"):
            fetcher.fetch([Address(f"https://one.test/{name}")])
    assert len(web.asked) == 1
    with pytest.raises(Unavailable, match="answers 404"):
        fetcher.fetch([Address("https://two.test/c")])


def test_a_mirror_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.test/")
    fetcher, web = downloader(tmp_path, {"/datasets/x/resolve/r/f": GOOD})
    fetcher.fetch([Address("https://huggingface.co/datasets/x/resolve/r/f")])
    assert web.asked == ["https://mirror.test/datasets/x/resolve/r/f"]


@pytest.mark.parametrize("source", SOURCES.values(), ids=lambda s: s.name)
def test_addresses_name_a_revision(source):
    for address in (*source.train, *source.test):
        assert address.url.startswith("https://")
        revision = [part for part in address.url.split("/") if len(part) == 40]
        assert len(revision) == 1 and int(revision[0], 16)
        assert address.sha256 is None or len(address.sha256) == 64
    assert source_named(source.name.upper()) is source


class _CutShort(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(GOOD)

    def log_message(self, *_):
        pass


def test_a_connection_that_breaks_leaves_nothing_behind(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), _CutShort) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = Address(f"http://127.0.0.1:{server.server_port}/a.jsonl")
        with pytest.raises(Unavailable, match=r"RemoteProtocolError|broke off"):
            Downloader(tmp_path).fetch([address])
        server.shutdown()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
