"""tests/try-host, which users run against hosts of their own: what it refuses."""

import re
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


def test_the_guide_tells_every_step(repo):
    script = (repo / "tests/try-host").read_text(encoding="utf-8")
    guide = (repo / "docs/test-hosts.md").read_text(encoding="utf-8")
    steps = re.findall(r'^ *step "([^"]+)"', script, re.MULTILINE)
    told = re.findall(r"^\| ([^|`]+?)(?:, with `(\w+)=yes`)? \| [^|]+ \|$", guide, re.MULTILINE)
    rows = [name for name, _switch in told if name not in ("Step", "Host")]
    assert [name for name in steps if name != "verify after it"] == rows
    for switch in filter(None, (switch for _name, switch in told)):
        assert f"${{{switch}:-no}}" in script
