"""Real programs, built once from their source with Go."""

import fcntl
import os
import subprocess
from pathlib import Path

from hosts.shell import CACHE


def go_program(package: str) -> Path:
    """The program of PACKAGE@VERSION, in .cache/go. Another test run may be building it."""
    name, version = package.rsplit("/", 1)[1].split("@")
    folder = CACHE.parent / "go" / f"{name}-{version}"
    folder.mkdir(parents=True, exist_ok=True)
    path = f"{os.environ['PATH']}:/usr/local/go/bin:/usr/lib/go/bin"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / name).exists():
            subprocess.run(
                ["go", "install", "-trimpath", "-ldflags", "-s -w", package],
                env={**os.environ, "PATH": path, "GOBIN": str(folder), "GOFLAGS": "-buildvcs=false",
                     "CGO_CFLAGS": "-w"},
                capture_output=True, check=True,
            )  # fmt: skip
    return folder / name
