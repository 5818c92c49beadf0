"""A server that speaks OpenAI's protocol over real sockets and whose model is a script."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "secret-of-the-test"


class Breaks(Exception):
    """The connection ends after ``text``."""

    def __init__(self, text=""):
        super().__init__(text)
        self.text = text


class Refuses(Exception):
    def __init__(self, status, message="no", **headers):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


class _Http(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        if self.path != "/v1/models":
            return self.answer(404, {"detail": "Not Found"})
        if not self.allowed():
            return None
        if self.server.model.models is None:
            return self.answer(404, {"detail": "Not Found"})
        owner = {"owned_by": self.server.model.software} if self.server.model.software else {}
        models = [{"id": name, **owner} for name in self.server.model.models]
        return self.answer(200, {"data": models})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return
        with self.server.model._lock:
            self.server.model.requests.append((self.path, body))
            self.server.model.in_flight += 1
            self.server.model.most_in_flight = max(
                self.server.model.most_in_flight, self.server.model.in_flight
            )
        try:
            self.complete(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with self.server.model._lock:
                self.server.model.in_flight -= 1

    def complete(self, body):
        chat = self.path == "/v1/chat/completions"
        if not chat and self.path != "/v1/completions":
            return self.answer(404, {"detail": "Not Found"})
        try:
            said = self.server.model.script(body)
        except Refuses as no:
            error = {"error": {"message": no.message}}
            return self.answer(no.status, error, **no.headers)
        except Breaks as end:
            self.begin()
            self.pieces(end.text, chat)
            self.close_connection = True
            return self.connection.close()
        text, reason = said if isinstance(said, tuple) else (said, "stop")
        self.begin()
        count = self.pieces(text, chat)
        self.event({"choices": [{"index": 0, "text": "", "finish_reason": reason}]})
        self.event({"choices": [], "usage": {"completion_tokens": count}})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")
        return None

    def pieces(self, text, chat):
        cuts = range(0, len(text), self.server.model.piece)
        for at in cuts:
            piece = text[at : at + self.server.model.piece]
            choice = {"delta": {"content": piece}} if chat else {"text": piece}
            if self.server.model.ids is not None and body_wants_ids(
                self.server.model.requests[-1][1]
            ):
                choice["token_ids"] = self.server.model.ids(piece)
            self.event({"choices": [{"index": 0, "finish_reason": None, **choice}]})
            self.server.model.pieces_sent += 1
        return len(cuts)

    def allowed(self):
        if (
            self.server.model.key is None
            or self.headers["Authorization"] == f"Bearer {self.server.model.key}"
        ):
            return True
        self.answer(401, {"error": {"message": "bad key"}})
        return False

    def answer(self, status, value, **headers):
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, header in headers.items():
            self.send_header(name.replace("_", "-"), header)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def begin(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def event(self, value):
        self.chunk(b"data: " + json.dumps(value).encode() + b"\n\n")

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


class ModelServer:
    """``script(body)`` returns the whole text that the model would write, or raises.

    A pair is text and the reason of its end. Text is streamed in pieces of ``piece``
    characters, each with the ids that ``ids`` gives it.
    """

    def __init__(self, script, *, models=("scripted",), piece=3, key=None, ids=None, software=None):
        self.software = software
        self.script, self.models, self.piece, self.key, self.ids = script, models, piece, key, ids
        self.requests = []
        self.in_flight = self.most_in_flight = 0
        self.pieces_sent = 0
        self._lock = threading.Lock()
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.model = self
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))

    @property
    def url(self):
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @contextmanager
    def running(self):
        self._thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._thread.join()
            self._http.server_close()


def body_wants_ids(body):
    return bool(body.get("return_token_ids"))


@contextmanager
def serving(script, **options):
    with ModelServer(script, **options).running() as server:
        yield server
