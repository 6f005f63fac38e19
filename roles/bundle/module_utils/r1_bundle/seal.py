"""The last steps of a bundle: the project, the manifest, a signature, an update, parts."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import sealed
from .packages import Refused

UNPACK = "unpack.py"
# Of a checkout without git: what is made there, or is the owner's secret.
NOT_CARRIED = {".venv", ".venv-test", ".cache", ".git", ".ansible", "reports", "secrets"}
NOT_CARRIED |= {"__pycache__", ".pytest_cache", ".ruff_cache"}


def project_files(project):
    """Paths in the project's folder that belong to it: what git knows or would add."""
    argv = ["git", "-C", str(project), "ls-files", "-z", "--cached", "--others"]
    done = subprocess.run([*argv, "--exclude-standard"], capture_output=True, check=False)
    if done.returncode == 0:
        names = [name for name in done.stdout.decode().split("\0") if name]
    else:
        names = [
            str(path.relative_to(project))
            for path in project.rglob("*")
            if not NOT_CARRIED & set(path.relative_to(project).parts)
        ]
    return sorted(name for name in names if (project / name).is_file())


def copy_project(project, folder):
    """Bring the folder up to date; return its files, and their modes where one is executable."""
    names, modes = project_files(project), {}
    for name in names:
        source, place = project / name, folder / "project" / name
        if os.access(source, os.X_OK):
            modes[f"project/{name}"] = "755"
        if place.is_file() and sealed.sha256_of(place) == sealed.sha256_of(source):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, place)
    return [f"project/{name}" for name in names], modes


def entry(folder, path, modes):
    """A file's line in the manifest."""
    place = folder / path
    found = {"bytes": place.stat().st_size, "sha256": sealed.sha256_of(place)}
    return found | ({"mode": modes[path]} if path in modes else {})


def remove_others(folder, names):
    """What an earlier making left, and this one does not want."""
    wanted = set(names) | {sealed.MANIFEST, sealed.SIGNATURE}
    for path in sorted(folder.rglob("*"), reverse=True):
        name = str(path.relative_to(folder))
        if name not in wanted and any(part.startswith(".") for part in Path(name).parts):
            continue  # records of the making
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif name not in wanted:
            path.unlink()


def sign(folder, key):
    (folder / sealed.SIGNATURE).unlink(missing_ok=True)
    if not key:
        return
    argv = ["ssh-keygen", "-Y", "sign", "-f", key, "-n", sealed.SIGNED_AS]
    done = subprocess.run(
        [*argv, str(folder / sealed.MANIFEST)], capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        raise Refused(
            f"bundle_signing_key: value {key} cannot sign ({done.stderr.strip()[-300:]}); fix: "
            "name a private SSH key without a passphrase, or a public one that your agent has"
        )


def write(folder, manifest):
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    new = folder / (sealed.MANIFEST + ".new")
    new.write_text(text, encoding="utf-8")
    new.replace(folder / sealed.MANIFEST)


def seal(folder, project, names, about, key=""):
    """Write the manifest over `names` and the project. Return it, and whether it is new."""
    folder = Path(folder)
    shutil.copyfile(Path(sealed.__file__), folder / UNPACK)
    own, modes = copy_project(Path(project), folder)
    names = sorted({*names, *own, UNPACK})
    try:
        before = sealed.read(folder)
    except sealed.Broken:
        before = {}
    with ThreadPoolExecutor(4) as pool:
        lines = pool.map(lambda name: entry(folder, name, modes), names)
        files = dict(zip(names, lines, strict=True))
    remove_others(folder, names)
    content = {"format": sealed.FORMAT, "kind": "bundle", **about, "files": files}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    manifest = {**content, "id": digest}
    signed = (folder / sealed.SIGNATURE).exists()
    if manifest == before and signed == bool(key):
        return manifest, False
    write(folder, manifest)
    sign(folder, key)
    return manifest, True


def update(folder, manifest, since, target, key=""):
    """Beside a bundle: what changed since another one, to be copied over that one's folder.
    Return how many files, and whether they are new."""
    old = sealed.read(Path(since).parent if Path(since).is_file() else since)
    changed = [
        name
        for name, file in manifest["files"].items()
        if name == UNPACK or old["files"].get(name, {}).get("sha256") != file["sha256"]
    ]
    wanted = {**manifest, "since": old["id"]}
    try:
        there = sealed.read(target) == wanted
    except sealed.Broken:
        there = False
    if there and all((target / name).exists() for name in changed):
        return len(changed), False
    shutil.rmtree(target, ignore_errors=True)
    for name in changed:
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(folder / name, place)
        except OSError:
            shutil.copyfile(folder / name, place)
    write(target, wanted)
    sign(target, key)
    return len(changed), True


class Cut(io.RawIOBase):
    """A stream into files of at most `limit` bytes each."""

    def __init__(self, folder, limit):
        self.folder, self.limit = folder, limit
        self.files, self.digest, self.stream, self.size = {}, None, None, 0

    def writable(self):
        return True

    def write(self, data):
        view = memoryview(data)
        while view:
            if self.stream is None or self.size == self.limit:
                self.next()
            part = view[: self.limit - self.size]
            self.stream.write(part)
            self.digest.update(part)
            self.size += len(part)
            view = view[len(part) :]
        return len(data)

    def next(self):
        self.finish()
        self.name = f"bundle.tar.{len(self.files):04}"
        self.stream = (self.folder / self.name).open("wb")
        self.digest, self.size = hashlib.sha256(), 0

    def finish(self):
        if self.stream:
            self.stream.close()
            self.files[self.name] = {"bytes": self.size, "sha256": self.digest.hexdigest()}
            self.stream = None


def split(folder, target, limit, key=""):
    """Beside a bundle or an update: one tar of it, cut into files of `limit` bytes. Return how
    many, and whether they are new."""
    inner = sealed.read(folder)
    about = {name: inner.get(name) for name in ("id", "for", "since")} | {"part_bytes": limit}
    try:
        old = sealed.read(target)
    except sealed.Broken:
        old = {}
    same = old and about == {name: old.get(name) for name in about}
    if same and all((target / name).exists() for name in old["files"]):
        return len(old["files"]), False
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    cut = Cut(target, limit)
    names = [*sorted(inner["files"]), sealed.SIGNATURE, sealed.MANIFEST]
    with tarfile.open(fileobj=cut, mode="w|", bufsize=1 << 20) as tar:
        for name in (name for name in names if (folder / name).exists()):
            tar.add(folder / name, arcname=name)
    cut.finish()
    shutil.copyfile(Path(sealed.__file__), target / UNPACK)
    write(target, {"format": sealed.FORMAT, "kind": "parts", **about, "files": cut.files})
    sign(target, key)
    return len(cut.files), True
