"""A stand-in for the hubs, which no test machine can reach: their HTTP routes on loopback.

The clients that talk to it are the real ones. It serves the routes of Hugging Face, ModelScope
and Ollama's library, and a plain web folder, for the files it is given, and misbehaves as told.
"""

import functools
import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@functools.lru_cache(64)
def digest(kind: str, body: bytes, head: bytes = b"") -> str:
    """Kept: a large file's takes longer than to send it."""
    made = hashlib.new(kind, head)
    made.update(body)
    return made.hexdigest()


class Hub:
    def __init__(self, files: dict[str, bytes]):
        self.files = files
        self.bodies = {}  # path -> bytes sent in place of the right ones
        self.cut_after = []  # each answer takes one: bytes after which it breaks off
        self.spoil = []  # each answer takes one: a function of the body that gives what is sent
        self.drip_after = []  # each answer takes one: bytes after which it only drips, or None
        self.hooks = []  # (bytes, function): called once, when so many bytes of bodies were sent
        self.dead_after = None  # bytes of bodies after which every connection is dropped
        self.sums = None  # what the web folder's SHA256SUMS says
        self.rate = None  # bytes per second of one answer
        self.ranges = True  # or it sends the whole file whatever is asked for
        self.token = None  # what a client must show
        self.refuse = []  # HTTP statuses, one for each coming body
        self.retry_after = None  # seconds that a refusal asks to wait
        self.requests, self.sent, self.spoilt = [], 0, 0
        self.lock, self.stopped = threading.Lock(), threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Routes,), {"hub": self}))
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # clients that are killed hang up
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def behave(self):
        """Serve rightly from now on."""
        self.cut_after, self.spoil, self.drip_after, self.hooks = [], [], [], []
        self.bodies, self.refuse, self.dead_after, self.retry_after = {}, [], None, None

    def count(self, size: int):
        with self.lock:
            self.sent += size
            due = [hook for hook in self.hooks if hook[0] <= self.sent]
            self.hooks = [hook for hook in self.hooks if hook not in due]
        for _bytes, call in due:
            call()

    def stop(self):
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def dead(self) -> bool:
        return self.dead_after is not None and self.sent >= self.dead_after


class Routes(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.dead:
            self.close_connection = True
            return None
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self.json(401, {"error": "gated"}) if path != "/" else self.json(200, {})
        if path.startswith("/folder/"):
            return self.plain(path.removeprefix("/folder/"))
        if path.startswith("/api/models/o/n/revision/"):
            siblings = [{"rfilename": name} for name in self.hub.files]
            return self.json(200, {"id": "o/n", "sha": COMMIT, "siblings": siblings})
        if path.startswith("/api/models/o/n/tree/"):
            return self.json(200, [self.hugging_face_entry(name) for name in self.hub.files])
        if path.startswith("/o/n/resolve/"):
            return self.file(path.split("/", 5)[5])
        if path == "/api/v1/models/o/n/repo/files":
            entries = [self.modelscope_entry(name) for name in self.hub.files]
            return self.json(200, {"Code": 200, "Success": True, "Data": {"Files": entries}})
        if path == "/api/v1/models/o/n/repo":
            return self.file(query["FilePath"][0])
        if path == "/v2/library/n/manifests/tag":
            return self.json(200, {"layers": [self.layer(name) for name in self.hub.files]})
        if path.startswith("/v2/library/n/blobs/sha256:"):
            digests = {digest("sha256", body): n for n, body in self.hub.files.items()}
            return self.file(digests.get(path.rsplit(":", 1)[1]))
        return self.json(200 if path == "/" else 404, {})

    def plain(self, name):
        """A folder of a web server, which knows nothing of models."""
        if name == "SHA256SUMS" and self.hub.sums is not None:
            self.hub.files[name] = self.hub.sums
        return self.file(name)

    def hugging_face_entry(self, name):
        body = self.hub.files[name]
        entry = {"type": "file", "path": name, "size": len(body)}
        entry["oid"] = digest("sha1", body, b"blob %d\0" % len(body))
        if not name.endswith(".json"):
            entry["lfs"] = {"oid": digest("sha256", body), "size": len(body), "pointerSize": 134}
        return entry

    def modelscope_entry(self, name):
        body = self.hub.files[name]
        last, sha256 = name.rsplit("/", 1)[-1], digest("sha256", body)
        return {"Path": name, "Name": last, "Type": "blob", "Size": len(body), "Sha256": sha256}

    def layer(self, name):
        body = self.hub.files[name]
        return {
            "mediaType": "application/vnd.ollama.image.model",
            "digest": "sha256:" + digest("sha256", body),
            "size": len(body),
        }

    def json(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status in (429, 503) and self.hub.retry_after is not None:
            self.send_header("Retry-After", str(self.hub.retry_after))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def file(self, name):
        if name not in self.hub.files:
            return self.json(404, {"error": "no such file"})
        if self.hub.refuse:
            return self.json(self.hub.refuse.pop(0), {"error": "not now"})
        body = self.hub.bodies.get(name, self.hub.files[name])
        asked = self.headers.get("Range", "") if self.hub.ranges else ""
        start, _, last = asked.removeprefix("bytes=").partition("-")
        start, end = int(start or 0), min(int(last or len(body)) + 1, len(body))
        if self.command == "GET" and self.hub.spoil:
            body = self.hub.spoil.pop(0)(body)
            self.hub.spoilt += max(len(body), len(self.hub.files[name]))
        if start and start >= len(body):
            return self.json(416, {"error": "no such range"})
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(body)}")
        self.send_header("Content-Length", str(end - start))
        self.send_header("ETag", f'"{digest("sha1", self.hub.files[name])}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.send_slowly(body[start:end])
        return None

    def send_slowly(self, body):
        limit = self.hub.cut_after.pop(0) if self.hub.cut_after else len(body)
        step = 1 << 16
        drip = self.hub.drip_after.pop(0) if self.hub.drip_after else None
        if drip is not None:
            limit = min(limit, drip)
        for at in range(0, min(limit, len(body)), step):
            piece = body[at : min(at + step, limit)]
            try:
                self.wfile.write(piece)
            except OSError:
                break
            self.hub.count(len(piece))
            if self.hub.rate:
                time.sleep(len(piece) / self.hub.rate)
            if self.hub.dead:
                break
        else:
            if limit >= len(body):
                return
            if drip is not None:
                self.drip(body[limit:])
        self.close_connection = True

    def drip(self, rest):
        for at in range(len(rest)):
            try:
                self.wfile.write(rest[at : at + 1])
            except OSError:
                return
            self.hub.count(1)
            if self.hub.stopped.wait(0.2):
                return
