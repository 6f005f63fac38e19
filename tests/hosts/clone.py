"""A stranger's clone of this repository: HEAD, or the working tree where it differs from HEAD."""

import shutil
from pathlib import Path

from .shell import run


def make(repo: Path, target: Path) -> str:
    """Fill the folder `target`; return what it holds. Nothing git ignores comes along."""
    if not run("git", "-C", repo, "status", "--porcelain").strip():
        run("git", "clone", "--quiet", "--no-hardlinks", repo, target)
        return "HEAD"
    names = run("git", "-C", repo, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, names.split("\0")):
        if (repo / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repo / name, target / name)
    return "the working tree"
