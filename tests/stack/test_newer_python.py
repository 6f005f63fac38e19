"""Where Python 3.12 or newer is found, the environment holds the newer ansible-core."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hosts import clone
from hosts.shell import run, step

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1800)]


def newer_python() -> str | None:
    """A Python 3.12 or newer with venv, of this machine's path or of pyenv."""
    candidates = [shutil.which(f"python3.{minor}") for minor in (14, 13, 12)]
    candidates += sorted(map(str, Path.home().glob(".pyenv/versions/3.1[234]*/bin/python3")))
    test = "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 12))"
    for python in filter(None, candidates):
        if subprocess.run([python, "-c", test], capture_output=True, check=False).returncode == 0:
            return python
    return None


def test_a_newer_python_works(repo, tmp_path):
    python = newer_python()
    if not python:
        pytest.skip("no Python 3.12 or newer on this machine; ansible-core 2.21 is not tested")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)  # some tests run as another user, who must be able to read the clone
    copy = tmp_path / "clone"
    clone.make(repo, copy)
    environment = {**os.environ, "PYTHON": python}
    with step(f"environment and tests' environment made by {python}"):
        run("bin/bootstrap", cwd=copy, env=environment)
        run("bin/bootstrap", "test", cwd=copy, env=environment)
    version = run(copy / ".venv/bin/ansible-playbook", "--version", cwd=copy)
    assert "[core 2.21" in version
    with step("--syntax-check of every playbook"):
        books = [copy / "deploy.yml", *sorted(copy.glob("playbooks/*.yml"))]
        run(copy / ".venv/bin/ansible-playbook", "--syntax-check", *books, cwd=copy)
    with step("refusals, and unit tests that run playbooks, with ansible-core 2.21"):
        files = [*copy.glob("tests/unit/test_*.py"), *copy.glob("tests/refusals/test_*.py")]
        tests = [file for file in files if "ansible-playbook" in file.read_text()]
        run(copy / ".venv-test/bin/pytest", "-q", *tests, cwd=copy)
