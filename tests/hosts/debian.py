"""Where this machine gets its Debian packages from, so that test hosts use the same place.

Nothing of it is written in the repository: no mirror, no proxy, no certificate authority.
"""

import contextlib
import fcntl
import os
import re
import time
from pathlib import Path

from .shell import CACHE, HostError, run

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def release() -> dict[str, str]:
    """/etc/os-release as a dict."""
    lines = Path("/etc/os-release").read_text().splitlines()
    return {k: v.strip('"') for k, _, v in (line.partition("=") for line in lines) if k}


def install(*packages: str, config: Path | None = None) -> None:
    """Install packages on this machine, from its own sources or those of an apt config."""
    if os.geteuid() != 0 or release().get("ID") != "debian":
        raise HostError(f"{' '.join(packages)} is missing, and only root on Debian gets it for you")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    if config:
        environment["APT_CONFIG"] = str(config)
    apt = ["apt-get", "-qq", "--option=DPkg::Lock::Timeout=300"]
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test run may be at it
        update(*apt, env=environment)
        run(*apt, "install", "--yes", "--no-install-recommends", *packages, env=environment)


def update(*apt: str, env: dict[str, str], seconds: float = 300) -> None:
    """apt-get update, which by itself does not wait for a deploy on this machine to end its own."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            run(*apt, "update", env=env)
            return
        except HostError as error:
            if "Could not get lock" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(2)


def mirrors() -> dict[str, str]:
    """{"main": URI, "security": URI} of this machine's own apt sources."""
    found = {}
    for _ in range(2):
        targets = run("apt-get", "indextargets", "--format", "$(ORIGIN)|$(RELEASE)|$(REPO_URI)")
        for line in targets.splitlines():
            origin, suite, uri = line.split("|")
            if origin == "Debian" and not suite.endswith("-updates"):
                found["security" if suite.endswith("-security") else "main"] = uri
        if "main" in found:
            return found
        with contextlib.suppress(HostError):  # one source of several may be out of reach
            update("apt-get", "-qq", env=dict(os.environ))
    raise HostError("this machine's apt sources name no Debian mirror, so no Debian can be made")


def sources(*suites: str) -> str:
    """sources.list lines of whole suites (release, updates, security), signed by Debian's keys."""
    mirror = mirrors()
    lines = []
    for suite in suites:
        lines += [
            f"deb [signed-by={KEYRING}] {mirror['main']} {suite} main",
            f"deb [signed-by={KEYRING}] {mirror['main']} {suite}-updates main",
        ]
        if "security" in mirror:
            lines.append(f"deb [signed-by={KEYRING}] {mirror['security']} {suite}-security main")
    return "\n".join(lines) + "\n"


def apt_settings() -> str:
    """How this machine's apt reaches its mirror (proxy, clock checks): lines for apt.conf.d."""
    wanted = re.compile(r"^Acquire::(Check-|https?::|ForceIPv)\S* \"[^\"]")
    return "".join(
        f"{line}\n" for line in run("apt-config", "dump").splitlines() if wanted.match(line)
    )


def own_authorities(known: str) -> list[str]:
    """Certificates this machine trusts beyond those of the bundle `known`."""
    have = set(PEM.findall(known))
    mine = BUNDLE.read_text() if BUNDLE.exists() else ""
    return [pem for pem in PEM.findall(mine) if pem not in have]


def environment() -> dict[str, str]:
    """Proxy, certificate and package-index settings of this machine's environment.

    Values that are paths are kept only where the same file is there on every Debian.
    """
    wanted = re.compile(
        r"^(PIP_\w+|(HTTPS?|NO|ALL)_PROXY|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE"
        r"|GOPROXY|GOSUMDB|GONOSUMDB|GONOSUMCHECK|GOFLAGS)$",
        re.IGNORECASE,
    )
    everywhere = {str(BUNDLE), str(BUNDLE.parent)}
    return {
        name: value
        for name, value in os.environ.items()
        if wanted.match(name) and (not value.startswith("/") or value in everywhere)
    }
