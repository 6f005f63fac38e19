#!/usr/bin/env python3
"""What a sealed bundle holds, and whether it does. Every bundle carries this file as unpack.py:

  python3 BUNDLE/unpack.py FOLDER   put the project with its environment into FOLDER, from the
                                    bundle alone; FOLDER may hold an older one
  python3 PARTS/unpack.py BUNDLE    put parts together again, or an update of parts into its bundle
  --signer KEY                      only what the holder of this public SSH key has signed

Standard library alone, Python 3.9 or newer.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FORMAT = 1
MANIFEST = "manifest.json"
SIGNATURE = MANIFEST + ".sig"
SIGNED_AS = "deepseek-r1-bundle"
APT_CONFIG = """\
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::lists "{folder}/lists";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
"""


class Broken(Exception):
    """This is not the bundle that was made."""


def sha256_of(path):
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def read(folder, signer=""):
    """The manifest of a bundle, whose signature is compared where a signer is named."""
    folder = Path(folder)
    try:
        text = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise Broken(f"has no {MANIFEST} ({error.strerror}), so it is no bundle") from error
    if signer:
        require_signature(folder, text, signer)
    try:
        manifest = json.loads(text)
        if manifest["format"] != FORMAT:
            raise Broken(
                f"is of format {manifest['format']}, this version reads format {FORMAT}; use the "
                "project that lies in the bundle"
            )
        for path, file in manifest["files"].items():
            if path.startswith("/") or ".." in path.split("/"):
                raise Broken(f"names the file {path}, which is outside of it")
            int(file["bytes"]), str(file["sha256"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Broken(f"has a damaged {MANIFEST} ({type(error).__name__}: {error})") from error
    return manifest


def require_signature(folder, text, signer):
    """ssh-keygen decides; it reads the signer's key from a file of its own form."""
    if not (folder / SIGNATURE).is_file():
        raise Broken(f"is not signed: {SIGNATURE} is missing")
    if not shutil.which("ssh-keygen"):
        raise Broken(
            "cannot be held against its signer: ssh-keygen (openssh-client) is missing here"
        )
    with tempfile.NamedTemporaryFile("w", suffix=".signers") as signers:
        signers.write(f"{SIGNED_AS} {signer.strip()}\n")
        signers.flush()
        argv = ["ssh-keygen", "-Y", "verify", "-f", signers.name, "-I", SIGNED_AS]
        argv += ["-n", SIGNED_AS, "-s", str(folder / SIGNATURE)]
        done = subprocess.run(argv, input=text, capture_output=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
        raise Broken(
            f"was not signed by that key, or {MANIFEST} was changed since ({(said or [''])[-1]})"
        )


def faults(folder, manifest, seen=None):
    """(what is wrong with the files, a sentence each; what is right now, to be given as `seen`).

    A file that has the size and the time it had when its hash was right is not read again.
    """
    folder, seen = Path(folder), seen or {}

    def look(item):
        path, wanted = item
        try:
            status = (folder / path).stat()
            stamp = [status.st_size, status.st_mtime_ns, wanted["sha256"]]
            if status.st_size != wanted["bytes"]:
                return path, f"has {status.st_size} bytes instead of {wanted['bytes']}", None
            actual = wanted["sha256"] if seen.get(path) == stamp else sha256_of(folder / path)
        except OSError as error:
            return path, f"is missing ({error.strerror})", None
        if actual != wanted["sha256"]:
            return path, f"has SHA-256 {actual} instead of {wanted['sha256']}", None
        return path, None, stamp

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(look, sorted(manifest["files"].items())))
    wrong = [f"{path} {text}" for path, text, _stamp in answers if text]
    return wrong, {path: stamp for path, text, stamp in answers if not text}


def told(wrong, manifest):
    """The faults as one sentence; an update that was taken for the whole is told as such."""
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    hint = ""
    if manifest.get("since") and any(" is missing " in text for text in wrong):
        hint = f" (this is an update: copy it over the folder of bundle {manifest['since']})"
    return "; ".join(wrong[:3]) + more + hint


def require_whole(folder, manifest):
    wrong, _right = faults(folder, manifest)
    if wrong:
        raise Broken(f"is not whole: {told(wrong, manifest)}")


def write_apt_config(packages, folder):
    """Make apt know the bundle's packages alone; the environment that does it."""
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    (folder / "lists/partial").mkdir(mode=0o755, parents=True, exist_ok=True)
    (folder / "sources.list").write_text(f"deb [trusted=yes] file:{packages} ./\n")
    (folder / "apt.conf").write_text(APT_CONFIG.format(folder=folder))
    return {"APT_CONFIG": str(folder / "apt.conf")}


# Unpacking


def join(parts, manifest, target):
    """The parts are one tar, cut; its last file is the manifest, so half of it is no bundle."""
    target.mkdir(mode=0o755, parents=True, exist_ok=True)
    argv = ["tar", "--extract", "--no-same-owner", "--file", "-", "-C", str(target)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as tar:
        for name in sorted(manifest["files"]):
            with (parts / name).open("rb") as stream:
                shutil.copyfileobj(stream, tar.stdin, 1 << 20)
        tar.stdin.close()
    if tar.returncode:
        raise Broken(f"could not be put together in {target}: tar ended with {tar.returncode}")


def unpack_project(bundle, manifest, target):
    """Put the project into a folder; files changed there stay, the new ones lie beside them."""
    record = target / ".unpacked.json"
    before = json.loads(record.read_text()) if record.exists() else {}
    if target.exists() and any(target.iterdir()) and not before:
        raise Broken(f"cannot go to {target}: there are files of others. Name another folder")
    now, kept = {}, []
    for path, file in manifest["files"].items():
        if not path.startswith("project/"):
            continue
        name = path.removeprefix("project/")
        now[name] = file["sha256"]
        place = target / name
        here = sha256_of(place) if place.is_file() else None
        if here == file["sha256"]:
            continue
        if here not in (None, before.get(name)):
            place = place.with_name(place.name + ".from-bundle")
            kept.append(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle / path, place)
        place.chmod(int(file.get("mode", "644"), 8))
    for name, digest in before.items():
        place = target / name
        if name not in now and place.is_file() and sha256_of(place) == digest:
            place.unlink()
    record.write_text(json.dumps(now, indent=1, sort_keys=True))
    return kept


def bootstrap(bundle, target):
    environment = dict(
        os.environ, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(bundle / "wheels"), PIP_CONFIG_FILE=""
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        environment |= write_apt_config(bundle / "packages", Path(folder))
        return subprocess.run(
            ["bash", "bin/bootstrap"], cwd=target, env=environment, check=False
        ).returncode


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--signer", default="", help="public SSH key: 'ssh-ed25519 AAAA...'")
    asked = parser.parse_args()
    here, target = Path(__file__).resolve().parent, asked.folder.resolve()
    try:
        manifest = read(here, asked.signer)
        print(f"Comparing {len(manifest['files'])} files with {MANIFEST} ...", flush=True)
        require_whole(here, manifest)
        if manifest["kind"] == "parts":
            join(here, manifest, target)
            print(f"Next: python3 {target}/unpack.py FOLDER")
            return 0
        kept = unpack_project(here, manifest, target)
    except (Broken, OSError) as error:
        print(f"{here} {error}. Nothing was changed but what is said.", file=sys.stderr)
        return 1
    for name in kept:
        print(f"You changed {name}: it stays, the new one is {name}.from-bundle")
    status = bootstrap(here, target)
    if status == 0:
        inside = f"cd {target} && ANSIBLE_CONFIG=ansible.cfg .venv/bin/ansible-playbook"
        print(f"Next: {inside} deploy.yml -l HOST -e bundle={here}")
    return status


if __name__ == "__main__":
    sys.exit(main())
