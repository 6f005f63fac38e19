#!/usr/bin/python
"""Install one release of Ollama into a folder of its own."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: ollama_release
short_description: Install one release of Ollama into a folder of its own
description:
  - Unpacks a release archive (tar with zstd or gzip) or a bare program so that
    I(path)C(/bin/ollama) is there. The folder appears whole or not at all.
  - A download is resumed after a cut, also in a later run, and must have the given SHA-256.
  - Beside the new release the newest other one is kept, older ones are removed.
options:
  path:
    description: Folder of this release; its name must be another for another release.
    type: path
    required: true
  archive:
    description: File on the host. It is removed after it was unpacked.
    type: path
  url:
    description: Where to download the release. Needs I(sha256).
    type: str
  sha256:
    description: SHA-256 of what I(url) gives.
    type: str
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Install Ollama
  ollama_release:
    path: /opt/ollama/0.24.0
    url: https://github.com/ollama/ollama/releases/download/v0.24.0/ollama-linux-amd64.tar.zst
    sha256: 15c5f8d66ba06e0d3b4719df8868612dbd66e14e82760929bb3552e1657cdcdb
"""

RETURN = r"""
version:
  description: What the program says of itself.
  type: str
  returned: when the program is there
"""

ATTEMPTS = 5
BROUGHT = "Or set ollama_archive to a file you bring."


class Refused(Exception):
    """A condition that ends the module with this message."""


def sha256_of(path):
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 22), b""):
            digest.update(block)
    return digest.hexdigest()


def append(url, file):
    """Go on with a download where the file ends."""
    size = file.stat().st_size if file.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={size}-"} if size else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            mode = "ab" if answer.status == 206 else "wb"
            with file.open(mode) as stream:
                shutil.copyfileobj(answer, stream, 1 << 20)
                if answer.length:  # http.client does not mind a body that is cut short
                    raise OSError(f"{answer.length} bytes are missing")
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing is left to send
            raise


def download(url, sha256, file):
    attempt = 1
    while True:
        size = file.stat().st_size if file.exists() else 0
        try:
            append(url, file)
            break
        except (OSError, http.client.HTTPException) as error:
            if file.exists() and file.stat().st_size > size:
                attempt = 0
            if attempt == ATTEMPTS or getattr(error, "code", 500) < 500:
                raise Refused(
                    f"Downloading {url} failed: {error}. Check the network and the proxy, or "
                    f"name a mirror in ollama_archive_url. {BROUGHT}"
                ) from error
            time.sleep(attempt)
            attempt += 1
    found = sha256_of(file)
    if found != sha256.lower():
        file.unlink()
        raise Refused(
            f"{url} has the SHA-256 {found}, ollama_archive_sha256 says {sha256.lower()}. "
            f"The file is not the release that was pinned, and is not used. {BROUGHT}"
        )


def unpack(archive, folder):
    with archive.open("rb") as stream:
        magic = stream.read(4)
    if magic == b"\x7fELF":
        (folder / "bin").mkdir()
        shutil.copyfile(archive, folder / "bin/ollama")
        (folder / "bin/ollama").chmod(0o755)
        return
    how = {b"\x28\xb5\x2f\xfd": "--zstd", b"\x1f\x8b": "--gzip"}
    option = next((how[start] for start in how if magic.startswith(start)), None)
    if not option:
        raise Refused(f"{archive} is neither a .tar.zst, a .tgz nor a program for Linux. {BROUGHT}")
    command = ["tar", "--extract", option, "--no-same-owner", "--file", archive, "-C", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(f"Unpacking {archive} failed: {done.stderr.strip()} (zstd needs its package)")


def version(program):
    """Runs the program, which also shows that it fits this machine."""
    try:
        environment = {**os.environ, "HOME": "/nonexistent", "OLLAMA_HOST": "127.0.0.1:1"}
        done = subprocess.run(
            [program, "--version"], env=environment, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise Refused(
            f"The program of this release does not run here: {error}. {BROUGHT}"
        ) from error
    found = re.search(r"version is (\S+)", done.stdout + done.stderr)
    if not found:
        raise Refused(
            f"The program of this release does not run here: status {done.returncode}, "
            f"{(done.stderr or done.stdout).strip()}. Is it Ollama, for this processor? {BROUGHT}"
        )
    return found.group(1)


def install(given):
    path = Path(given["path"])
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if given["url"]:
        archive = path.with_name(f".download-{given['sha256'][:12]}")
        download(given["url"], given["sha256"], archive)
    else:
        archive = Path(given["archive"])
    for leftover in path.parent.glob(".unpack-*"):
        shutil.rmtree(leftover)
    for leftover in path.parent.glob(".download-*"):
        if leftover.name != f".download-{(given['sha256'] or '')[:12]}":
            leftover.unlink()
    folder = Path(tempfile.mkdtemp(prefix=".unpack-", dir=path.parent))
    try:
        folder.chmod(0o755)
        unpack(archive, folder)
        version(folder / "bin/ollama")
        shutil.rmtree(path, ignore_errors=True)
        folder.rename(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    archive.unlink()
    others = [one for one in path.parent.glob("[!.]*") if one != path]
    for old in sorted(others, key=lambda one: one.stat().st_mtime)[:-1]:
        shutil.rmtree(old)


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "archive": {"type": "path"},
            "url": {"type": "str"},
            "sha256": {"type": "str"},
        },
        mutually_exclusive=[("archive", "url")],
        required_one_of=[("archive", "url")],
        required_by={"url": "sha256"},
        supports_check_mode=True,
    )
    program = Path(module.params["path"]) / "bin/ollama"
    there = program.exists()
    try:
        if not there and not module.check_mode:
            install(module.params)
        found = version(program) if program.exists() else None
    except (Refused, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=not there, version=found)


if __name__ == "__main__":
    main()
