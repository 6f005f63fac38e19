"""A clean machine with the stack on it, shared by all whole-stack tests of a run."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO / "tests"), str(REPO / "tests/stack"), str(REPO / "tests/gateway")]

from box import Box  # noqa: E402  (found only from here on)
from hosts import image, machine, shell  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def _show_steps(pytestconfig):
    """Steps and their seconds are shown while the tests run, whatever pytest captures."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    one_at_a_time = threading.Lock()

    worker = "PYTEST_XDIST_WORKER" in os.environ  # whose standard output is lost

    def show(text: str) -> None:
        with one_at_a_time, capture.global_and_fixture_disabled():
            print(f"\n  {text}", end="", flush=True, file=sys.stderr if worker else sys.stdout)

    shell.show = show


@pytest.fixture
def clean_box():
    """Return a function that gives a machine nothing was ever deployed to, with the clone on it."""
    machines = []

    def make() -> Box:
        machines.append(machine.Machine(image.CLEAN_DEBIAN12))
        return Box(machines[-1], REPO)

    yield make
    for one in machines:
        one.remove()


@pytest.fixture(scope="module")
def module_box():
    """A machine for the tests of one file, nothing deployed."""
    with machine.Machine(image.CLEAN_DEBIAN12) as one:
        yield Box(one, REPO)


@pytest.fixture(scope="session")
def shared_box():
    """The machine that the tests take over from each other; see Box.want."""
    with machine.Machine(image.CLEAN_DEBIAN12) as one:
        yield Box(one, REPO)


@pytest.fixture
def box(shared_box):
    """A machine with the default deployment, running."""
    shared_box.want("llamacpp")
    return shared_box


@pytest.fixture(scope="session")
def ollama_binary() -> Path:
    """The real Ollama, built once from its source (two to three minutes)."""
    with shell.step("Ollama built, or found built"):
        done = subprocess.run(
            [sys.executable, REPO / "tests/tools/build_ollama"], stdout=subprocess.PIPE, text=True,
            check=False,
        )  # fmt: skip
    if done.returncode:
        pytest.fail("Ollama cannot be built; see the lines above")
    return Path(done.stdout.split()[-1])
