#!/usr/bin/python
"""Let the other hosts of a deploy fetch a model from this one, for as long as that takes."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: model_share
short_description: Let the other hosts of a deploy fetch a model from this one
description:
  - Starts a small web server that gives the files of one model, and nothing else, to whoever has
    the token; it runs as nobody, and listens on the one address that leads to the other hosts.
  - The server ends when it is told to, and by itself when nobody has asked for five minutes.
options:
  state:
    description: Whether it is to run.
    type: str
    choices: [started, stopped]
    required: true
  root:
    description: Folder that holds all models.
    type: path
    required: true
  model:
    description: Name of the model.
    type: str
    required: true
  precision:
    description: Its precision.
    type: str
    required: true
  address:
    description: Address to listen on; empty takes the one that leads to the first of O(peers).
    type: str
    default: ""
  port:
    description: TCP port to listen on; 0 takes a free one.
    type: int
    default: 0
  token:
    description: What others have to show in the header C(Authorization), behind C(Bearer).
    type: str
    default: ""
  peers:
    description: Names or addresses of the other hosts.
    type: list
    elements: str
    default: []
attributes:
  check_mode: {support: none}
"""

EXAMPLES = r"""
- name: Offer the model
  model_share:
    state: started
    root: /var/lib/deepseek-r1/models
    model: deepseek-r1-14b
    precision: q4_k_m
    token: "{{ token }}"
    peers: [10.0.0.2]
  register: offer
"""

RETURN = r"""
url:
  description: Where the files are to be had; empty when no address leads to the other hosts.
  type: str
  returned: when started
of:
  description: What is offered, with C(source), C(repository), C(revision) and C(files).
  type: dict
  returned: when started
"""

IDLE = 300  # seconds

# Reads its orders from stdin, and answers with its port.
SERVER = r"""
import hmac, http.server, json, os, re, sys, threading, time, urllib.parse

ask = json.load(sys.stdin)
files = {}
for path in ask["files"]:
    handle = os.open(os.path.join(ask["folder"], path), os.O_RDONLY)
    files["/" + path] = handle, os.fstat(handle).st_size
busy, last = 0, time.monotonic()
count = threading.Lock()

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body):
        global busy, last
        with count:
            busy += 1
        try:
            self.send(body)
        finally:
            with count:
                busy, last = busy - 1, time.monotonic()

    def send(self, body):
        shown = self.headers.get("Authorization", "")
        found = files.get(urllib.parse.unquote(self.path))
        right = hmac.compare_digest(shown.encode(), ("Bearer " + ask["token"]).encode())
        if not right or not found:
            self.send_response(404 if right else 401)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        handle, size = found
        asked = re.fullmatch("bytes=([0-9]+)-([0-9]*)", self.headers.get("Range", ""))
        start, end = 0, size
        if asked:
            start, end = int(asked[1]), min(int(asked[2] or size) + 1, size)
            start = min(start, end)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", "bytes %d-%d/%d" % (start, end - 1, size))
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        while body and start < end:
            sent = os.sendfile(self.connection.fileno(), handle, start, min(end - start, 1 << 22))
            if not sent:
                return
            start += sent

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer.daemon_threads = True
server = http.server.ThreadingHTTPServer((ask["address"], ask["port"]), Handler)
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
print(json.dumps({"port": server.server_port}), flush=True)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
threading.Thread(target=server.serve_forever, daemon=True).start()
while busy or time.monotonic() - last < ask["idle"]:
    time.sleep(1)
"""


def address_towards(peers):
    """This host's address on the way to the first peer that is another machine."""
    for peer in peers:
        try:
            family, kind, _, _, place = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind) as probe:
                probe.connect(place)  # sends nothing
                address = probe.getsockname()[0]
        except OSError:
            continue
        if not address.startswith("127.") and address != "::1":
            return address
    return ""


class Share:
    def __init__(self, given):
        self.given = given
        self.folder = Path(given["root"], given["model"], given["precision"])
        self.note = Path(given["root"], given["model"], f".{given['precision']}.share")

    def stop(self):
        """The server holds its note's lock; a number in a note that nobody holds is nobody's."""
        try:
            stream = self.note.open("r+")
        except FileNotFoundError:
            return
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.kill(int(stream.read()), signal.SIGTERM)
            self.note.unlink()

    def start(self):
        self.stop()
        address = self.given["address"] or address_towards(self.given["peers"])
        marker = json.loads((self.folder / ".complete").read_text(encoding="utf-8"))
        keep = ("source", "repository", "revision", "files", "quality")
        of = {key: marker[key] for key in keep if marker.get(key)}
        of["files"] = [
            {key: file[key] for key in ("path", "bytes", "sha256")} for file in of["files"]
        ]
        if not address:
            return {"url": "", "of": of}
        orders = {
            "folder": str(self.folder),
            "files": [file["path"] for file in of["files"]],
            "address": address,
            "port": self.given["port"],
            "token": self.given["token"],
            "idle": IDLE,
        }
        with os.fdopen(os.open(self.note, os.O_RDWR | os.O_CREAT, 0o600), "w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            server = subprocess.Popen(
                [sys.executable, "-I", "-c", SERVER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=[stream.fileno()],
                start_new_session=True,
                cwd="/",
            )
            stream.write(str(server.pid))
            stream.flush()
        server.stdin.write(json.dumps(orders).encode())
        server.stdin.close()
        said = server.stdout.readline()
        if not said:
            raise OSError(f"{address} port {self.given['port']} cannot be listened on")
        name = f"[{address}]" if ":" in address else address
        return {"url": f"http://{name}:{json.loads(said)['port']}", "of": of}


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["started", "stopped"], "required": True},
            "root": {"type": "path", "required": True},
            "model": {"type": "str", "required": True},
            "precision": {"type": "str", "required": True},
            "address": {"type": "str", "default": ""},
            "port": {"type": "int", "default": 0},
            "token": {"type": "str", "default": "", "no_log": True},
            "peers": {"type": "list", "elements": "str", "default": []},
        },
        required_if=[("state", "started", ["token"])],
    )
    share, answer = Share(module.params), {}
    try:
        if module.params["state"] == "started":
            answer = share.start()
        else:
            share.stop()
    except (OSError, ValueError) as error:
        module.fail_json(
            msg=f"The model cannot be shared with the other hosts: {error}. Fix: see "
            "model_share_address and model_share_port, or set model_share to false."
        )
    module.exit_json(changed=False, **answer)


if __name__ == "__main__":
    main()
