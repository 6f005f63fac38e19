"""A stand-in for Docker's own apt repository, which tests do not reach.

Its packages are Debian's under the names that Docker's have. The repository is signed for real,
by a key of its own.
"""

import re
from pathlib import Path

import apt_repository
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
    key = apt_repository.Key(folder / "gnupg")

    root = folder / system
    files = [
        package(root, name, next((folder / "debs").glob(f"{original}_*.deb")))
        for name, original in PACKAGES.items()
    ]
    (root / "gpg").write_text(key.public)
    suite = root / "dists" / codename
    head = f"Origin: Stand-in\nSuite: {codename}\nCodename: {codename}\nComponents: stable"
    apt_repository.publish(suite, suite / "stable/binary-amd64", root, files, key, head)
    return key.fingerprint


def package(root: Path, name: str, original: Path) -> Path:
    tree = root / f"tree-{name}"
    tree.parent.mkdir(exist_ok=True)
    run("dpkg-deb", "--raw-extract", original, tree)
    control = (tree / "DEBIAN/control").read_text()
    control = re.sub(r"^(Conflicts|Replaces|Breaks|Recommends|Suggests):.*\n", "", control,
                     flags=re.MULTILINE)  # fmt: skip
    for ours, theirs in PACKAGES.items():
        control = re.sub(rf"(?<=[ ,]){re.escape(theirs)}(?=[ ,\n])", ours, control)
    (tree / "DEBIAN/control").write_text(control)
    file = root / f"pool/{name}.deb"
    apt_repository.build(tree, file)
    return file
