"""A rented box whose system disk is wiped at shutdown, and whose data disk is not."""

import uuid

import pytest
from box import CLONE, Box
from hosts import image, machine
from hosts.shell import run, say

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

ARGS = "-e engine=ollama -e ollama_archive=/root/ollama -e model=tiny-r1 -e data_path=/data"
STORED = "find /data -name secrets -prune -o -type f -size +1M -printf '%p %i %s %T@ %n\\n' | sort"


@pytest.fixture
def rented(repo, ollama_binary):
    """Return a function that gives a new system with the same data disk."""
    disk, machines = f"deepseek-r1-test-{uuid.uuid4().hex[:6]}", []

    def boot() -> Box:
        for one in machines:
            one.remove()
        machines.append(machine.Machine(image.CLEAN_DEBIAN12, "--volume", f"{disk}:/data"))
        machines[-1].copy(ollama_binary, "/root/ollama")
        return Box(machines[-1], repo)

    yield boot
    for one in machines:
        one.remove()
    run("docker", "volume", "rm", disk, check=False)


def owners(box) -> set[str]:
    return set(box.machine.run("find /data/ollama -printf '%u\\n'").ok().output.split())


def test_a_second_deploy_finds_keys_and_models_again(rented):
    box = rented()
    box.deploy("make deploy on a rented box", ARGS).result.ok()
    key, stored = box.key(), box.machine.run(STORED).ok().output
    assert "/data/models/tiny-r1/" in stored and "/data/ollama/blobs/" in stored
    number = box.machine.run("id -u r1-engine").ok().output
    assert owners(box) <= {"r1-engine", "root"}

    box = rented()
    # The old number of r1-engine belongs to somebody else now.
    box.machine.run(f"useradd --system --uid {number.strip()} somebody").ok()
    assert "somebody" in owners(box)
    check = box.deploy("make deploy --check on the wiped box", f"{ARGS} --check")
    assert check.changed > 0
    assert box.machine.run(f"ls {CLONE}/secrets/local").rc != 0
    box.deploy("make deploy on the wiped box", ARGS).result.ok()
    assert box.key() == key
    assert box.machine.run(STORED).ok().output == stored, "nothing is fetched or copied again"
    assert box.machine.run("id -u r1-engine").ok().output != number
    assert owners(box) <= {"r1-engine", "root"}
    say(f"  verify on the wiped box: {len(box.verified()['checks'])} checks passed")
    again = box.deploy("make deploy on the wiped box, again", ARGS)
    assert again.changed == 0, again.changes()

    box.teardown("-e data_path=/data")
    assert "engine_key" in box.machine.run("ls /data/secrets").ok().output
    box.teardown("-e data_path=/data -e host_remove_data=true")
    assert box.machine.run("ls -A /data").output == ""
