"""Images of bare Debian systems, made by mmdebstrap from this machine's own mirror.

An image is remade when its recipe, the mirror or this file changes: its tag is their hash.
"""

import fcntl
import hashlib
import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from . import debian, engine
from .shell import CACHE, run, step

REPOSITORY = "deepseek-r1-test"
FILES = Path(__file__).parent / "files"
PINS = "etc/apt/preferences.d"


@dataclass(frozen=True)
class Recipe:
    """A Debian with minbase's packages and `packages`; `hooks` are shell lines run on its root.

    `borrowed` names a later suite and packages taken from it. `files` gives programs by their
    path. A machine of the image runs `command` first, in a container with `options`.
    """

    name: str
    suite: str
    packages: tuple[str, ...]
    hooks: tuple[str, ...] = field(default=())
    borrowed: tuple[str, tuple[str, ...]] | None = None
    files: tuple[tuple[str, str], ...] = field(default=())
    command: tuple[str, ...] = ("sleep", "infinity")
    # /run is empty after a restart, as on a machine; --init reaps what has no parent.
    options: tuple[str, ...] = ("--init", "--tmpfs", "/run:exec,mode=755")

    @property
    def suites(self) -> tuple[str, ...]:
        return (self.suite, self.borrowed[0]) if self.borrowed else (self.suite,)

    def digest(self) -> str:
        parts = repr(self) + debian.sources(*self.suites) + Path(__file__).read_text()
        return hashlib.sha256(parts.encode()).hexdigest()[:12]

    @property
    def tag(self) -> str:
        return f"{REPOSITORY}/{self.name}:{self.digest()}"


def program(name: str) -> str:
    return (FILES / name).read_text()


# What `make deploy` may assume on a fresh Debian 12, and no more: no init system, no sudo, no
# curl, no venv, no process tools, no package lists, no policy that keeps services from starting.
CLEAN_DEBIAN12 = Recipe(
    name="clean-debian12",
    suite="bookworm",
    packages=("ca-certificates", "git", "make", "python3"),
)

# A cloud's bare image: reached over SSH by root or by `admin`, who may sudo without a password.
CLOUD_PACKAGES = ("ca-certificates", "openssh-server", "python3", "sudo")
CLOUD_HOOKS = (
    'rm -f "$1"/etc/hostname "$1"/etc/resolv.conf "$1"/etc/ssh/ssh_host_*',
    'chroot "$1" useradd --create-home --shell /bin/bash admin',
    'install -d -m 700 "$1/root/.ssh" && install -d -m 700 -o 1000 -g 1000 "$1/home/admin/.ssh"',
    "echo 'admin ALL=(ALL) NOPASSWD: ALL' >\"$1/etc/sudoers.d/admin\"",
    'chmod 440 "$1/etc/sudoers.d/admin"',
)


def _systemd(name: str, suite: str, *packages: str, borrowed=None) -> Recipe:
    return Recipe(
        name=name,
        suite=suite,
        packages=(
            *CLOUD_PACKAGES, "dbus", "iproute2", "libpam-systemd", "systemd-sysv", *packages,
        ),
        hooks=(
            *CLOUD_HOOKS,
            # Empty: made at the first boot, which yet is no first boot that enables all units.
            ': >"$1/etc/machine-id"',
            # Kernel settings, modules and terminals are this machine's.
            'chroot "$1" systemctl mask systemd-sysctl.service systemd-modules-load.service'
            " getty.target console-getty.service",
        ),
        borrowed=borrowed,
        files=(("/usr/local/sbin/power-on", program("power-on.sh")),),
        command=("/usr/local/sbin/power-on",),
        # A volume: Docker within would else have no overlay2. Restart: a reboot ends a container.
        options=(
            "--privileged", "--cgroupns=private", "--restart=always", "--tmpfs", "/run:exec",
            "--tmpfs", "/run/lock", "--volume", "/var/lib/docker",
        ),
    )  # fmt: skip


def _rented(name: str, suite: str) -> Recipe:
    return Recipe(
        name=name,
        suite=suite,
        packages=CLOUD_PACKAGES,
        hooks=CLOUD_HOOKS,
        files=(("/usr/local/sbin/rented-box", program("rented-box.sh")),),
        command=("/usr/local/sbin/rented-box",),
    )


# An ops machine with Docker and compose v2, which Debian 12's own packages do not have.
SYSTEMD_DEBIAN12 = _systemd(
    "systemd-debian12", "bookworm", "iptables", borrowed=(engine.SUITE, engine.PACKAGES)
)
SYSTEMD_DEBIAN13 = _systemd("systemd-debian13", "trixie")
SSH_DEBIAN12 = _rented("ssh-debian12", "bookworm")
SSH_DEBIAN13 = _rented("ssh-debian13", "trixie")
SYSTEMD = (SYSTEMD_DEBIAN12, SYSTEMD_DEBIAN13)
REMOTE = {recipe.name: recipe for recipe in (*SYSTEMD, SSH_DEBIAN12, SSH_DEBIAN13)}

REGISTRY = Recipe(
    name="registry",
    suite="bookworm",
    packages=("ca-certificates", "docker-registry"),
    files=(("/etc/docker/registry/config.yml", program("registry.yml")),),
    command=("docker-registry", "serve", "/etc/docker/registry/config.yml"),
)


def ensure(recipe: Recipe) -> str:
    """Return the tag of the recipe's image, making it where it is missing."""
    tag = recipe.tag
    with (CACHE / f"{recipe.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test run may be at it
        if run("docker", "images", "--quiet", tag):
            return tag
        build(recipe, tag)
    for old in run("docker", "images", "--format", "{{.Repository}}:{{.Tag}}",
                   f"{REPOSITORY}/{recipe.name}").split():  # fmt: skip
        if old != tag:
            run("docker", "rmi", old, check=False)  # refused while a container uses it
    return tag


def build(recipe: Recipe, tag: str) -> None:
    if not shutil.which("mmdebstrap"):
        with step("mmdebstrap installed"):
            debian.install("mmdebstrap")
    later, borrowed = recipe.borrowed or ("", ())
    options = [f"--include={','.join(recipe.packages + borrowed)}"]
    options += [f"--aptopt={line.rstrip(';')}" for line in debian.apt_settings().splitlines()]
    if borrowed:
        pin = f"Package: {' '.join(borrowed)}\nPin: release n={later}\nPin-Priority: 995"
        options += [
            f'--aptopt=APT::Default-Release "{recipe.suite}"',
            f'--setup-hook=mkdir -p "$1/{PINS}" && echo "{pin}" >"$1/{PINS}/borrowed"',
            f'--customize-hook=rm "$1/{PINS}/borrowed"',
        ]
    with step(f"image {tag} made"), tempfile.TemporaryDirectory() as folder:
        root, tar = Path(folder) / "root", Path(folder) / "tar"
        for path, text in (*recipe.files, ("/etc/apt/sources.list", debian.sources(recipe.suite))):
            file = root / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(0o755 if text.startswith("#!") else 0o644)
        options.append(f"--customize-hook=sync-in {root} /")
        options += [f"--customize-hook={hook}" for hook in recipe.hooks]
        # This machine's way to the mirror is given to machines when they start, not to the image.
        options.append('--customize-hook=rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap"')
        run("mmdebstrap", "--quiet", "--variant=minbase", "--format=tar", *options, recipe.suite,
            tar, "-", input=debian.sources(*recipe.suites))  # fmt: skip
        with tar.open("rb") as stream:
            subprocess.run(
                ["docker", "import", "--change", f"CMD {json.dumps(recipe.command)}", "-", tag],
                stdin=stream, stdout=subprocess.DEVNULL, check=True,
            )  # fmt: skip
