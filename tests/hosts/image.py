"""Images of bare Debian systems, made by mmdebstrap from this machine's own mirror.

An image is remade when its recipe, the mirror or this file changes: its tag is their hash.
"""

import hashlib
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from . import debian
from .shell import run, step

REPOSITORY = "deepseek-r1-test"


@dataclass(frozen=True)
class Recipe:
    """A Debian with minbase's packages and `packages`; `hooks` are shell lines run on its root."""

    name: str
    suite: str
    packages: tuple[str, ...]
    hooks: tuple[str, ...] = field(default=())

    def digest(self) -> str:
        parts = repr(self) + debian.sources(self.suite) + Path(__file__).read_text()
        return hashlib.sha256(parts.encode()).hexdigest()[:12]

    @property
    def tag(self) -> str:
        return f"{REPOSITORY}/{self.name}:{self.digest()}"


# What `make deploy` may assume on a fresh Debian 12, and no more: no init system, no sudo, no
# curl, no venv, no process tools, no package lists, no policy that keeps services from starting.
CLEAN_DEBIAN12 = Recipe(
    name="clean-debian12",
    suite="bookworm",
    packages=("ca-certificates", "git", "make", "python3"),
)


def ensure(recipe: Recipe) -> str:
    """Return the tag of the recipe's image, making it where it is missing."""
    tag = recipe.tag
    if not run("docker", "images", "--quiet", tag):
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
    options = [f"--include={','.join(recipe.packages)}"]
    options += [f"--aptopt={line.rstrip(';')}" for line in debian.apt_settings().splitlines()]
    options += [f"--customize-hook={hook}" for hook in recipe.hooks]
    # This machine's way to the mirror is given to machines when they start, not to the image.
    options.append('--customize-hook=rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap"')
    with step(f"image {tag} made"), tempfile.NamedTemporaryFile(suffix=".tar") as tar:
        run("mmdebstrap", "--quiet", "--variant=minbase", "--format=tar", *options, recipe.suite,
            tar.name, "-", input=debian.sources(recipe.suite))  # fmt: skip
        with Path(tar.name).open("rb") as stream:
            subprocess.run(
                ["docker", "import", "--change", 'CMD ["sleep", "infinity"]', "-", tag],
                stdin=stream, stdout=subprocess.DEVNULL, check=True,
            )  # fmt: skip
