"""Two hosts of one deploy that need the same model: the network sees it once."""

import http.server
import json
import os
import subprocess
import threading

import pytest
import yaml
from hosts import clone, image, network
from hosts.remote import Remote, inventory
from hosts.shell import say
from remote import PLAYBOOK

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1200)]


@pytest.fixture
def folder(tiny_gguf):
    """A web folder that the hosts reach, with the model; and who asked for it."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **options):
            super().__init__(*args, directory=tiny_gguf.parent, **options)

        def do_GET(self):
            asked.append((self.client_address[0], self.path))
            super().do_GET()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer((network.gateway(), 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{network.gateway()}:{server.server_port}", asked
    server.shutdown()


def test_the_first_host_fetches_and_the_other_takes_it_from_there(repo, tmp_path, tiny_gguf,
                                                                 folder):  # fmt: skip
    url, asked = folder
    catalogue = yaml.safe_load((repo / "roles/plan/vars/catalogue.yml").read_text())
    source = {"source": "http", "repository": url, "files": [{"path": tiny_gguf.name}]}
    source["files"][0]["bytes"] = tiny_gguf.stat().st_size
    entry = {**catalogue["__plan_catalogue"]["tiny-r1"],
             "precisions": {"q4_k_m": {"sources": [source]}}}  # fmt: skip
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
        settings = {"model": "shared-r1", "models": {"shared-r1": entry}, "engine": "llamacpp"}
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
