"""tests/try-host, which users run against hosts of their own: what it refuses."""

import subprocess

import pytest


@pytest.mark.parametrize("arguments", [(), ("-e", "model=tiny-r1")])
def test_a_host_must_be_named(repo, arguments):
    done = subprocess.run(
        [repo / "tests/try-host", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "try-host: name a host or group of the inventory: tests/try-host gpu-box\n"
    )
