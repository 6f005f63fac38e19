"""A model from the network on whole hosts: rebooted in the middle, and two that need the same."""

import http.server
import json
import os
import subprocess
import threading
import time

import pytest
import yaml
from hosts import clone, image, network
from hosts.remote import Remote, inventory
from hosts.shell import say
from remote import PLAYBOOK, RemoteBox

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1200)]


class Folder(http.server.ThreadingHTTPServer):
    """A web folder that the hosts reach, with the model: who asked, how much went, how fast."""

    daemon_threads = True

    def __init__(self, file):
        self.asked, self.sent, self.rate = [], 0, 1 << 30
        self.url = self.start(file)

    def start(self, file):
        body, folder = file.read_bytes(), self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.begin()

            def begin(self):
                here = self.path == f"/{file.name}"
                # The file is one piece, so what is asked for ends where it ends.
                start = int(self.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
                self.send_response(404 if not here else 206 if start else 200)
                self.send_header("Content-Length", str(len(body) - start if here else 0))
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
                self.end_headers()
                return body[start:] if here else b""

            def do_GET(self):
                folder.asked.append((self.client_address[0], self.path))
                rest = self.begin()
                while rest:
                    part, rest = rest[:65536], rest[65536:]
                    self.wfile.write(part)
                    folder.sent += len(part)
                    time.sleep(len(part) / folder.rate)

            def log_message(self, *_):
                pass

        super().__init__((network.gateway(), 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return f"http://{network.gateway()}:{self.server_port}"

    def models(self, repo, file):
        """An entry of the user's own, whose only source is this folder."""
        catalogue = yaml.safe_load((repo / "roles/plan/vars/catalogue.yml").read_text())
        files = [{"path": file.name, "bytes": file.stat().st_size}]
        source = {"source": "http", "repository": self.url, "files": files}
        entry = catalogue["__plan_catalogue"]["tiny-r1"]
        return {"shared-r1": {**entry, "precisions": {"q4_k_m": {"sources": [source]}}}}


@pytest.fixture
def folder(tiny_gguf):
    server = Folder(tiny_gguf)
    yield server
    server.shutdown()


def test_a_host_that_is_rebooted_in_the_middle_goes_on(
    repo, tmp_path, tiny_gguf, folder, monkeypatch
):
    # A connection that is kept would be waited for, long after its other end is gone.
    monkeypatch.setenv("ANSIBLE_SSH_ARGS", "-o ControlMaster=no")
    models, size = folder.models(repo, tiny_gguf), tiny_gguf.stat().st_size
    with Remote(image.SYSTEMD_DEBIAN13) as host:
        box = RemoteBox(host, repo, tmp_path, engine="llamacpp", model="shared-r1", models=models)
        folder.rate = 200_000
        run = box.start(tmp_path / "log")
        deadline = time.monotonic() + 400
        while folder.sent < size // 2:
            assert run.poll() is None and time.monotonic() < deadline, (
                tmp_path / "log"
            ).read_text()
            time.sleep(0.1)
        host.reboot()
        assert run.wait(400) != 0
        home = "/var/lib/deepseek-r1/models/shared-r1"
        assert host.run(f"ls {home}/q4_k_m").rc != 0, "nothing half-fetched has its name"
        folder.rate = 1 << 30
        box.deploy("deploy after the reboot").result.ok()
        box.verified()
        # What was in the air, or not yet on the disk, when the power went.
        say(f"  {folder.sent:,} bytes sent of a file of {size:,}")
        assert folder.sent < size * 1.5


def test_the_first_host_fetches_and_the_other_takes_it_from_there(repo, tmp_path, tiny_gguf,
                                                                 folder):  # fmt: skip
    asked = folder.asked
    project, hosts = tmp_path / "clone", tmp_path / "hosts.yml"
    clone.make(repo, project)

    def deploy(title):
        done = subprocess.run(
            [PLAYBOOK, "deploy.yml", "-i", hosts, "-l", "all"], cwd=project, text=True,
            capture_output=True, stdin=subprocess.DEVNULL,
            env={**os.environ, "ANSIBLE_CONFIG": str(project / "ansible.cfg"), "COLUMNS": "200"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:]
        say(f"  {title}: {done.stdout.rpartition('PLAY RECAP')[2].strip(' *')}")
        return done.stdout

    with Remote(image.SSH_DEBIAN13) as one, Remote(image.SSH_DEBIAN13) as two:
        settings = {
            "model": "shared-r1",
            "models": folder.models(repo, tiny_gguf),
            "engine": "llamacpp",
        }
        hosts.write_text(inventory({"one": one, "two": two}, **settings))
        deploy("deploy")
        files = [host for host, path in asked if path.endswith(".gguf")]
        assert files == [one.address], "one request, of one host"
        assert {host for host, _path in asked} == {one.address}
        markers = []
        for host in (one, two):
            home = "/var/lib/deepseek-r1/models/shared-r1"
            markers.append(json.loads(host.read(f"{home}/q4_k_m/.complete")))
            assert host.open_ports() == {22, 80}, "the offer is over"
            assert host.run(f"ls -A {home}").ok().output.split() == [".pins.json", "q4_k_m"]
        assert markers[0]["source"] == markers[1]["source"] == "http"
        assert markers[0]["files"][0]["sha256"] == markers[1]["files"][0]["sha256"]
        assert deploy("again").count("changed=0 ") == 2
        assert len([path for _host, path in asked if path.endswith(".gguf")]) == 1
