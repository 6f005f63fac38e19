"""A stand-in for Docker's own apt repository, which tests do not reach.

Its packages are Debian's under the names that Docker's have. The repository is signed for real,
by a key of its own.
"""

import gzip
import hashlib
import re
import subprocess
from pathlib import Path

from hosts.shell import run

PACKAGES = {
    "docker-ce": "docker.io",
    "docker-ce-cli": "docker-cli",
    "containerd.io": "containerd",
    "docker-compose-plugin": "docker-compose",
}


def make(folder: Path, host, system: str, codename: str) -> str:
    """Fill `folder` as the repository's root, from what apt on `host` offers.

    Return the fingerprint of its key.
    """
    host.run(
        "apt-get -qq update && mkdir -p /srv/debs && cd /srv/debs && apt-get -qq"
        f" --option=APT::Sandbox::User=root download {' '.join(PACKAGES.values())}"
    ).ok()
    run("docker", "cp", f"{host.name}:/srv/debs", folder / "debs")
    host.run("rm -r /srv/debs").ok()
    home = folder / "gnupg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", home, "--batch", "--quiet", "--yes", "--pinentry-mode=loopback",
           "--passphrase", ""]  # fmt: skip
    run(*gpg, "--quick-generate-key", "stand-in <nobody@example.org>", "rsa3072", "sign", "never")
    listed = run(*gpg, "--with-colons", "--list-keys").splitlines()
    fingerprint = next(line.split(":")[9] for line in listed if line.startswith("fpr:"))

    root = folder / system
    (root / "pool").mkdir(parents=True)
    suite = root / "dists" / codename
    index = suite / "stable/binary-amd64"
    index.mkdir(parents=True)
    (root / "gpg").write_text(run(*gpg, "--armor", "--export", fingerprint))
    packages = "".join(
        package(root, name, next((folder / "debs").glob(f"{original}_*.deb")))
        for name, original in PACKAGES.items()
    )
    (index / "Packages").write_text(packages)
    (index / "Packages.gz").write_bytes(gzip.compress(packages.encode()))
    sums = "".join(
        f" {sha256(file)} {file.stat().st_size} {file.relative_to(suite)}\n"
        for file in (index / "Packages", index / "Packages.gz")
    )
    (suite / "Release").write_text(
        f"Origin: Stand-in\nSuite: {codename}\nCodename: {codename}\nArchitectures: amd64\n"
        f"Components: stable\nDate: Sat, 01 Jun 2024 00:00:00 UTC\nSHA256:\n{sums}"
    )
    run(*gpg, "--clearsign", "--output", suite / "InRelease", suite / "Release")
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False)
    return fingerprint


def package(root: Path, name: str, original: Path) -> str:
    """Build it; return its paragraph of the index."""
    tree = root / f"tree-{name}"
    run("dpkg-deb", "--raw-extract", original, tree)
    control = (tree / "DEBIAN/control").read_text()
    control = re.sub(r"^(Conflicts|Replaces|Breaks|Recommends|Suggests):.*\n", "", control,
                     flags=re.MULTILINE)  # fmt: skip
    for ours, theirs in PACKAGES.items():
        control = re.sub(rf"(?<=[ ,]){re.escape(theirs)}(?=[ ,\n])", ours, control)
    (tree / "DEBIAN/control").write_text(control)
    file = root / f"pool/{name}.deb"
    run("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, file)
    return (
        f"{control}Filename: pool/{file.name}\nSize: {file.stat().st_size}\n"
        f"SHA256: {sha256(file)}\n\n"
    )


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
