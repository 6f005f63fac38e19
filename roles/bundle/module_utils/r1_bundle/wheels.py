"""Python packages of hashed lock files, for another machine's Python."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement

from .packages import Refused

RECORD = "locks.json"
# Tags of wheels that a glibc runs are those of itself and of all before it.
OLDER_NAMES = ["manylinux2014", "manylinux2010", "manylinux1", "linux"]


def minor(python):
    return ".".join(python.split(".")[:2])


def key_of(text, python):
    """The name of a lock file's wheels for one Python: `3.13 SHA256`."""
    return f"{minor(python)} {hashlib.sha256(text.encode()).hexdigest()}"


def markers(python, arch):
    """What requirements may ask of the machine they are installed on (PEP 508)."""
    return {
        "python_version": minor(python),
        "python_full_version": python if python.count(".") == 2 else f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": arch,
        "extra": "",
    }


def requirements(text, python, arch):
    """The lock's entries for that Python; pip would read their conditions as its own Python's."""
    entries, environment = [], markers(python, arch)
    for line in text.splitlines():
        if line[:1].isspace():
            entries[-1].append(line)
        elif line and not line.startswith(("#", "-")):
            entries.append([line])
    kept = []
    for first, *hashes in entries:
        wanted = Requirement(first.rstrip("\\ "))
        if wanted.marker is None or wanted.marker.evaluate(environment):
            kept.append("\n".join([f"{wanted.name}{wanted.specifier} \\", *hashes]))
    return "\n".join(kept) + "\n"


def platforms(glibc, arch):
    newest = int(glibc.split(".")[1])
    names = [f"manylinux_2_{minor}" for minor in range(newest, 4, -1)] + OLDER_NAMES
    return [part for name in names for part in ("--platform", f"{name}_{arch}")]


def download(text, python, system, folder):
    """Names of the files that pip brought for one lock; pip compares their hashes."""
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    argv += ["--disable-pip-version-check", "--require-hashes", "--only-binary", ":all:"]
    argv += ["--implementation", "cp", "--python-version", minor(python)]
    argv += platforms(system["glibc"], system["arch"])
    with tempfile.TemporaryDirectory(prefix=".wheels-", dir=folder.parent) as work:
        lines = Path(work, "requirements.txt")
        lines.write_text(requirements(text, python, system["arch"]), encoding="utf-8")
        argv += ["--dest", work, "-r", str(lines)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
            raise Refused(f"pip cannot bring all wheels for Python {python}: {said}")
        lines.unlink()
        names = sorted(path.name for path in Path(work).iterdir())
        for name in names:
            Path(work, name).replace(folder / name)
    return names


def gather(folder, locks, system):
    """Fill the folder; return the names of its files and whether any of them is new.

    `locks` holds (text, version of Python) for each lock file; a version may end after its
    second number. What was brought is recorded beside the folder, so that pip is not asked again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = folder.parent / f".{folder.name}-{RECORD}"
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    here = {path.name for path in folder.iterdir()}
    found, changed = {}, False
    for text, python in locks:
        key = key_of(text, python)
        found[key] = known.get(key)
        if found[key] is None or not here.issuperset(found[key]):
            found[key] = download(text, python, system, folder)
            changed = True
        record.write_text(json.dumps({**known, **found}, indent=1), encoding="utf-8")
    record.write_text(json.dumps(found, indent=1, sort_keys=True), encoding="utf-8")
    wanted = {name for names in found.values() for name in names}
    for path in folder.iterdir():
        if path.name not in wanted:
            path.unlink()
            changed = True
    return sorted(wanted), changed, sorted(found)
