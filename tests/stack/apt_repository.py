"""apt repositories of the tests' own: packages in Debian's form, signed for real."""

import functools
import gzip
import hashlib
import http.server
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

from hosts import network
from hosts.shell import run


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def served(folder: Path):
    """Give the URL by which test hosts fetch from the folder."""
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer((network.gateway(), 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{network.gateway()}:{server.server_port}"
        server.shutdown()


class Key:
    """A key made for the test, in a folder of its own."""

    def __init__(self, folder: Path):
        self.home = folder
        folder.mkdir(mode=0o700)
        self._gpg("--quick-generate-key", "stand-in <nobody@example.org>", "rsa3072", "sign",
                  "never")  # fmt: skip
        listed = self._gpg("--with-colons", "--list-keys").splitlines()
        self.fingerprint = next(line.split(":")[9] for line in listed if line.startswith("fpr:"))
        self.public = self._gpg("--armor", "--export", self.fingerprint)

    def sign(self, release: Path) -> None:
        """Write InRelease beside it."""
        self._gpg("--clearsign", "--output", release.with_name("InRelease"), release)

    def _gpg(self, *argv) -> str:
        gpg = ["gpg", "--homedir", self.home, "--batch", "--quiet", "--yes",
               "--pinentry-mode=loopback", "--passphrase", ""]  # fmt: skip
        try:
            return run(*gpg, *argv)
        finally:
            subprocess.run(["gpgconf", "--homedir", self.home, "--kill", "all"], check=False)


def build(tree: Path, file: Path) -> None:
    """Make a package of a folder that has a DEBIAN/control."""
    file.parent.mkdir(parents=True, exist_ok=True)
    run("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, file)


def publish(suite: Path, index: Path, root: Path, files: list[Path], key: Key, head: str) -> None:
    """Write the index of the packages, and the suite's Release over it; `root` is apt's URI."""
    index.mkdir(parents=True, exist_ok=True)
    packages = "".join(paragraph(file, root) for file in files)
    (index / "Packages").write_text(packages)
    (index / "Packages.gz").write_bytes(gzip.compress(packages.encode()))
    sums = "".join(
        f" {sha256(file)} {file.stat().st_size} {file.relative_to(suite)}\n"
        for file in (index / "Packages", index / "Packages.gz")
    )
    date = "Date: Sat, 01 Jun 2024 00:00:00 UTC"
    (suite / "Release").write_text(f"{head}\nArchitectures: amd64\n{date}\nSHA256:\n{sums}")
    key.sign(suite / "Release")


def paragraph(file: Path, root: Path) -> str:
    return (
        f"{run('dpkg-deb', '--field', file)}Filename: {file.relative_to(root)}\n"
        f"Size: {file.stat().st_size}\nSHA256: {sha256(file)}\n\n"
    )


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
