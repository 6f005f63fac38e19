"""What ran on a host before is left alone, or serves when told; never overwritten."""

import json
import re
import sys

import pytest
from hosts import image, machine
from hosts.shell import run, say

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

SITE = "server { listen 127.0.0.1:8090; location / { return 200 mine; } }\n"
# As nginx.org's: newer than Debian's, and without the interface that Debian's modules need.
FOREIGN_NGINX = """\
Package: nginx
Version: 1.29.3-1~bookworm
Architecture: all
Maintainer: Somebody else <nobody@example.org>
Provides: httpd
Description: an nginx of another source
"""
MINE = "curl -sS --max-time 5 http://127.0.0.1:8090/"


@pytest.fixture(scope="module")
def host(module_box):
    """A machine with an nginx and a Redis of its owner, both with a configuration of his."""
    module_box.machine.run(
        "apt-get -qq update && apt-get -qq install --yes --no-install-recommends nginx redis-server"
        f" curl && echo '{SITE}' > /etc/nginx/conf.d/mine.conf && echo 'maxmemory 33mb'"
        " >> /etc/redis/redis.conf && (nginx -s quit; redis-cli shutdown; sleep 1; nginx"
        " && redis-server /etc/redis/redis.conf --daemonize yes && sleep 1"
        " && redis-cli set owner me)"
    ).ok()
    return module_box


def owned(box):
    """Files and processes of the owner's servers, and what they answer."""
    hashes = "find /etc/nginx /etc/redis -type f -exec sha256sum {} +"
    processes = [p for p in box.machine.processes() if p.command.startswith(("nginx", "redis"))]
    ours = [p for p in processes if p.user.startswith("r1-") or "deepseek-r1" in p.command]
    return {
        "files": box.machine.listing("/etc/nginx", "/etc/redis"),
        "content": sorted(box.machine.run(hashes).ok().output.splitlines()),
        "processes": sorted(p.pid for p in processes if p not in ours and p.user != "www-data"),
        "site": box.machine.run(MINE).output,
        "key": box.machine.run("redis-cli get owner").output.strip(),
    }


def refusal(run) -> str:
    assert run.result.rc, run.output
    assert "changed=0 " in run.output
    assert "Refused, nothing was changed." in run.output
    words = " ".join(run.output.split())
    return words[words.index("Refused, nothing") :]


def test_an_nginx_of_another_source_is_not_replaced(module_box):
    host = module_box.machine
    host.write("/root/foreign/DEBIAN/control", FOREIGN_NGINX)
    host.run("apt-get -qq update && dpkg-deb --build foreign f.deb && dpkg --install f.deb").ok()
    said = refusal(module_box.deploy("make deploy beside an nginx of another source"))
    assert "packages: value 'libnginx-mod-http-lua : Depends: nginx-abi-" in said
    assert "remove what comes from another source, or set runtime to compose" in said
    assert "1.29.3" in host.run("dpkg-query --show nginx").ok().output
    host.run("dpkg --purge nginx && rm -r foreign f.deb").ok()


def test_what_is_there_stays_as_it_is(host):
    before = owned(host)
    assert (before["site"], before["key"], len(before["processes"])) == ("mine", "me", 2)
    said = refusal(host.deploy("make deploy on a held port", "-e gateway_port=8090"))
    assert "gateway_port: value 8090 is held by nginx (pid " in said
    assert "set gateway_port to a free port and let your nginx pass to it" in said

    run = host.deploy("make deploy beside nginx and Redis")
    assert run.changed > 0
    for name in ("nginx", "redis-server"):
        assert re.search(
            rf"- {name} \(pid \d+, port .*\) runs on this host; it is left", run.output
        )
    host.verified()
    assert owned(host) == before
    again = host.deploy("make deploy beside them, again")
    assert again.changed == 0, again.changes()


def test_a_redis_that_is_adopted(host):
    """The owner's Redis holds the answers, and none of ours runs."""
    before = owned(host)
    args = "-e gateway_redis=127.0.0.1:6379"
    run = host.deploy("make deploy with the owner's Redis", args)
    assert run.changed > 0
    assert "redis-server (pid" in run.output and "it serves, as set" in run.output
    assert host.services()["redis"] == []
    host.verified()  # among it: the second answer comes from the cache
    assert "r1:" in host.machine.run("redis-cli keys 'r1:*'").ok().output
    again = host.deploy("make deploy with the owner's Redis, again", args)
    assert again.changed == 0, again.changes()
    assert owned(host) == before


def ollama(host, what):
    return (
        host.machine.run(f"OLLAMA_HOST=127.0.0.1:11434 HOME=/root /root/ollama {what}").ok().output
    )


def serve_ollama(box, address) -> None:
    box.run(
        f"(cd / && HOME=/home/owner OLLAMA_HOST={address}:11434 setsid setpriv --reuid=owner"
        " --regid=owner --init-groups ollama serve > /dev/null 2>&1 &)"
        " ; timeout 20 sh -c 'until curl -sf 127.0.0.1:11434/api/version; do sleep 0.2; done'"
    ).ok()


def test_an_ollama_that_is_adopted(host, ollama_binary):
    box = host.machine
    box.copy(ollama_binary, "/root/ollama")
    box.run("useradd --create-home owner && install -m 755 /root/ollama /usr/local/bin").ok()
    model = "/root/deepseek-r1/roles/model/files/tiny-r1/tiny-r1-q4_k_m.gguf"
    box.run(f"echo 'FROM {model}' > /root/Modelfile").ok()
    store = "/home/owner/.ollama/models"
    serve_ollama(box, "0.0.0.0")
    ollama(host, "create tiny-r1 -f /root/Modelfile")
    box.run(f"touch {store}/blobs/sha256-{'0' * 64}-partial").ok()  # a pull that goes on
    manifest = box.run(f"cat {store}/manifests/registry.ollama.ai/library/tiny-r1/latest").output

    args = "-e engine_port=11434 -e ollama_adopt=true"
    said = refusal(host.deploy("make deploy with an open Ollama and a taken name", args))
    assert "ollama_adopt: value true finds an Ollama that other machines reach at ::" in said
    assert "ollama_adopt: value true meets a model of the same name: " in said
    assert "registry.ollama.ai/library/tiny-r1:latest in" in said
    box.kill(*(p for p in box.processes() if p.command.endswith("ollama serve")))
    serve_ollama(box, "127.0.0.1")
    ollama(host, "cp tiny-r1 mine")
    ollama(host, "rm tiny-r1")

    before = owned(host)
    run = host.deploy("make deploy with the owner's Ollama", args)
    assert run.changed > 0
    assert re.search(r"- ollama \(pid \d+, port 11434\) runs on this host; it serves", run.output)
    assert host.services()["engine"] == []
    report = host.verified()
    (memory,) = [check for check in report["checks"] if check["name"] == "memory"]
    say(f"  {memory['detail']}")
    assert "0.00 GiB" not in memory["detail"].partition(",")[0]
    listed = ollama(host, "list")
    assert "mine:latest" in listed and "tiny-r1:latest" in listed
    kept = box.run(f"cat {store}/manifests/registry.ollama.ai/library/mine/latest").ok().output
    assert json.loads(kept) == json.loads(manifest)
    assert "-partial" in box.run(f"ls {store}/blobs").ok().output
    again = host.deploy("make deploy with the owner's Ollama, again", args)
    assert again.changed == 0, again.changes()
    check = host.deploy("make deploy with the owner's Ollama, --check", args + " --check")
    assert check.changed == 0, check.changes()
    assert owned(host) == before


@pytest.mark.parametrize("ours", [True, False])
def test_ports_of_containers_are_known(repo, tmp_path, free_port, ours):
    """The gateway's own container is no stranger on its port; another one is."""
    port = free_port()
    options = ["--publish", f"127.0.0.1:{port}:80", "--label"]
    options.append(f"com.docker.compose.project={'deepseek-r1' if ours else 'shop'}")
    arguments = {"data_path": "/var/lib/deepseek-r1", "ports": [str(port)]}
    (tmp_path / "arguments.json").write_text(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
    with machine.Machine(image.CLEAN_DEBIAN12, *options) as one:
        module = repo / "roles/inspect/library/inspect_host.py"
        said = run(sys.executable, module, tmp_path / "arguments.json")
        held = json.loads(said)["ports"][str(port)]
        assert (held["container"], held["ours"]) == (one.name, ours)


def test_all_of_it_survives_a_teardown(host):
    before = owned(host)
    host.teardown()
    assert owned(host) == before
    assert "mine:latest" in ollama(host, "list")
    left = [p.command for p in host.machine.processes() if "deepseek-r1" in p.command]
    assert left == []
