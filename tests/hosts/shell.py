"""Run a command, show what it said when it fails, tell how long a step took."""

import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache/hosts"


class HostError(Exception):
    """A test host cannot be had; the message says why and what to do."""


def run(*argv, check=True, **popen) -> str:
    """Return a command's standard output; raise HostError with all it said when it fails."""
    done = subprocess.run(
        [str(part) for part in argv], capture_output=True, text=True, check=False, **popen
    )
    if check and done.returncode:
        said = (done.stdout + done.stderr)[-6000:]
        raise HostError(f"exit {done.returncode} of: {' '.join(map(str, argv))}\n{said}")
    return done.stdout


def show(text: str) -> None:
    """Where `say` goes; a test run puts its own reporter here."""
    print(text, file=sys.stderr, flush=True)


def say(text: str) -> None:
    show(text)


@contextmanager
def step(name: str):
    """Print the step's name and its seconds, whether it ends well or not."""
    start = time.monotonic()
    outcome = "failed"
    try:
        yield
        outcome = "ok"
    finally:
        say(f"[{time.monotonic() - start:7.1f} s] {outcome}: {name}")
