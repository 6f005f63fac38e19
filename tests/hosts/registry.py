"""A registry of images for the test hosts: Debian's docker-registry in place of the public ones.

It stands at an address that Docker on a test host knows (see remote.docker_settings): what is
pushed as `library/redis:7` comes with `docker pull redis:7` too, as from the public registry.
It outlives a test run; `python3 tests/hosts down` removes it.
"""

import fcntl
import time
import urllib.request

from . import engine, image, network
from .machine import LABEL
from .shell import CACHE, HostError, run

NAME = f"{LABEL}-registry"
PORT = network.REGISTRY_PORT


def ensure() -> str:
    """Have the registry running; return its name as this machine's Docker engine trusts it."""
    engine.ensure()
    tag = image.ensure(image.REGISTRY)
    address = network.registry()
    with (CACHE / "registry.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        running = run("docker", "ps", "--quiet", "--filter", f"name=^{NAME}$",
                      "--filter", f"ancestor={tag}")  # fmt: skip
        if not running:
            run("docker", "rm", "--force", "--volumes", NAME, check=False)
            run("docker", "run", "--detach", "--name", NAME, "--label", LABEL, "--restart=always",
                "--network", network.NAME, "--ip", address, "--publish", f"127.0.0.1::{PORT}",
                *image.REGISTRY.options, tag)  # fmt: skip
            _wait(f"http://{address}:{PORT}/v2/")
    return run("docker", "port", NAME, str(PORT)).split()[0]


def push(local: str, name: str) -> str:
    """Push a local image as `name` (with a tag); return NAME@DIGEST as test hosts pull it."""
    here = f"{ensure()}/{name}"
    run("docker", "tag", local, here)
    try:
        said = run("docker", "push", here)
    finally:
        run("docker", "rmi", here, check=False)
    digest = next(line.split()[2] for line in said.splitlines() if " digest: sha256:" in line)
    return f"{reference(name)}@{digest}"


def reference(name: str) -> str:
    """The name by which test hosts pull what was pushed as `name`."""
    return f"{network.registry()}:{PORT}/{name}"


def _wait(url: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + 30
    while True:
        try:
            with opener.open(url, timeout=5):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise HostError(f"no answer from {url}: {error}") from error
            time.sleep(0.1)
