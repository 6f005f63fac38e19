"""Packages of a Debian or Ubuntu with all they need, as a folder that apt can install from."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from pathlib import Path

from .sealed import sha256_of

ORIGINS = ("Debian", "Ubuntu")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Refused(Exception):
    """A condition that ends the making with this message."""


def run(*argv, env=None):
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(env or {})},
    )
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-12:])
        raise Refused(f"{' '.join(str(part) for part in argv[:3])} failed: {said}")
    return done.stdout


def os_release(path="/etc/os-release"):
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return {k: v.strip("\"'") for k, _, v in (line.partition("=") for line in lines) if k}


def own_sources(codename):
    """Lines of sources.list by which this machine's own mirrors serve the release `codename`."""
    here = os_release().get("VERSION_CODENAME", "")
    form = "$(ORIGIN)|$(CODENAME)|$(RELEASE)|$(REPO_URI)|$(COMPONENT)|$(SIGNED_BY)"
    lines = []
    for line in run(
        "apt-get", "indextargets", "--format", form, "Created-By: Packages"
    ).splitlines():
        origin, _code, release, uri, component, signed_by = line.split("|", 5)
        if origin not in ORIGINS:
            continue
        option = f"[signed-by={signed_by}] " if signed_by.startswith("/") else ""
        name = re.sub(rf"^{here}(?=$|-)", codename, release)
        if name == release and here != codename:
            continue
        lines.append(f"deb {option}{uri} {name} {component}")
    return list(dict.fromkeys(lines))


def apt_environment(work, sources, arch):
    """An apt that knows these sources and no installed package, so that nothing is left out."""
    for name in ("lists/partial", "cache/archives/partial", "empty"):
        (work / name).mkdir(parents=True, exist_ok=True)
    (work / "status").touch()
    (work / "sources.list").write_text("\n".join(sources) + "\n", encoding="utf-8")
    (work / "apt.conf").write_text(
        f'APT::Architecture "{ARCHITECTURES[arch]}";\n'
        f'APT::Architectures {{ "{ARCHITECTURES[arch]}"; }};\n'
        'APT::Install-Recommends "false";\n'
        'APT::Sandbox::User "";\n'
        'Debug::NoLocking "true";\n'
        f'Dir::Etc::sourcelist "{work}/sources.list";\n'
        f'Dir::Etc::sourceparts "{work}/empty";\n'
        f'Dir::Etc::preferences "{work}/none";\n'
        f'Dir::Etc::preferencesparts "{work}/empty";\n'
        f'Dir::State "{work}";\n'
        f'Dir::State::status "{work}/status";\n'
        f'Dir::Cache "{work}/cache";\n',
        encoding="utf-8",
    )
    return {"APT_CONFIG": str(work / "apt.conf")}


def wanted_files(packages, environment):
    """The files of the packages and of all they depend on."""
    argv = ["apt-get", "--print-uris", "--yes", "-qq", "install", *packages]
    lines = run(*argv, env=environment).splitlines()
    return {match[1] for line in lines if (match := re.match(r"'[^']+' (\S+\.deb) \d+", line))}


def stanza(deb):
    """What stands of a package in a repository's index."""
    control = run("dpkg-deb", "--field", str(deb)).rstrip("\n")
    size, digest = deb.stat().st_size, sha256_of(deb)
    return f"{control}\nFilename: ./{deb.name}\nSize: {size}\nSHA256: {digest}\n"


def release(codename, index):
    """mmdebstrap takes essential packages of the named release alone."""
    digest = hashlib.sha256(index).hexdigest()
    return f"Codename: {codename}\nSHA256:\n {digest} {len(index)} Packages\n"


def gather(folder, packages, codename, arch, sources):
    """Fill the folder; return the names of its files and whether any of them is new."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = sources or own_sources(codename)
    if not lines:
        raise Refused(
            f"this machine's apt sources serve no {codename}. Fix: make the bundle on a machine "
            "of that system, or give lines of sources.list in bundle_apt_sources."
        )
    with tempfile.TemporaryDirectory(prefix=".apt-", dir=folder.parent) as name:
        work = Path(name)
        environment = apt_environment(work, lines, arch)
        run("apt-get", "update", "-qq", "-o", "APT::Update::Error-Mode=any", env=environment)
        named = wanted_files(packages, environment)
        # What is there already was right when it came, and the seal is over all.
        have = {path.name for path in folder.glob("*.deb")}
        missing = named - have
        if missing:
            argv = ["apt-get", "--download-only", "--yes", "-qq", "install", *packages]
            for present in have & named:
                os.link(folder / present, work / "cache/archives" / present)
            run(*argv, env=environment)
            for deb in missing:
                (work / "cache/archives" / deb).replace(folder / deb)
    index = {"Packages": "\n".join(stanza(folder / deb) for deb in sorted(named))}
    index["Release"] = release(codename, index["Packages"].encode())
    changed = bool(missing)
    for path in folder.iterdir():
        if path.name not in named and path.name not in index:
            path.unlink()
    for name, text in index.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            changed = True
    return sorted([*named, *index]), changed
