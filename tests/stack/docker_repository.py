"""A stand-in for Docker's own apt repository, which tests do not reach.

Its packages have the right names and hold nothing: each depends on Debian's package of the same
program. The repository is signed for real, by a key of its own.
"""

import gzip
import hashlib
import subprocess
from pathlib import Path

from hosts.shell import run

PACKAGES = {
    "docker-ce": "docker.io",
    "docker-ce-cli": "docker-cli",
    "containerd.io": "containerd",
    "docker-compose-plugin": "docker-compose",
}


def make(folder: Path, system: str, codename: str) -> str:
    """Fill `folder` as the repository's root; return the fingerprint of its key."""
    home = folder / "gnupg"
    home.mkdir(mode=0o700, parents=True)
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
    packages = "".join(package(root, name, needs) for name, needs in PACKAGES.items())
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


def package(root: Path, name: str, needs: str) -> str:
    """Build it; return its paragraph of the index."""
    tree = root / f"tree-{name}"
    (tree / "DEBIAN").mkdir(parents=True)
    control = (
        f"Package: {name}\nVersion: 5:99.0-1\nArchitecture: amd64\nDepends: {needs}\n"
        f"Maintainer: Nobody <nobody@example.org>\nDescription: stand-in\n"
    )
    (tree / "DEBIAN/control").write_text(control)
    file = root / f"pool/{name}.deb"
    run("dpkg-deb", "--root-owner-group", "--build", tree, file)
    return (
        f"{control}Filename: pool/{file.name}\nSize: {file.stat().st_size}\n"
        f"SHA256: {sha256(file)}\n\n"
    )


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
