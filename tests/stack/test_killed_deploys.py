"""A deploy killed at any moment heals by running again."""

import os
import random
import re
import time

import pytest
from hosts.shell import say

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1800)]

POINTS = int(os.environ.get("STACK_KILLS", "10"))
SEED = int(os.environ.get("STACK_SEED", "3"))


def test_a_deploy_killed_at_any_point_heals_by_running_again(shared_box, tmp_path):
    box = shared_box
    box.want("llamacpp")  # the distribution's packages are there from now on
    box.teardown()
    whole = box.deploy("make deploy on a torn-down machine, not killed")
    whole.result.ok()
    say(f"seed {SEED}: {POINTS} kills within {whole.seconds:.1f} s (STACK_SEED, STACK_KILLS)")
    chance = random.Random(SEED)
    points = sorted(chance.uniform(0.5, whole.seconds) for _ in range(POINTS))
    rows, bad = [], []
    for point in points:
        box.teardown()
        task = kill_at(box, point, tmp_path / "killed.log")
        healing = box.deploy(f"run again after a kill at {point:.1f} s, in: {task}")
        again = box.deploy("and once more") if healing.result.rc == 0 else None
        healed = healing.result.rc == 0 and box.verified() and again.changed == 0
        rows.append((f"{point:6.1f}", f"{healing.seconds:6.1f}", "yes" if healed else "NO", task))
        if not healed:
            said = healing if again is None else again
            bad.append(f"killed at {point:.1f} s in {task}:\n{said.output[-4000:]}")
    say("killed at s | healed in s | healed | task at which it died")
    for row in rows:
        say(" | ".join(row))
    assert not bad, "\n\n".join(bad)
    box.engine = "llamacpp"


def kill_at(box, point: float, log) -> str:
    """Start a deploy and SIGKILL it with all it started; return the task it was in."""
    process = box.machine.start(box.deploy_command(), log, cwd="/root/deepseek-r1")
    time.sleep(point)
    box.machine.kill_tree("make deploy")
    process.wait(10)
    tasks = re.findall(r"^TASK \[(.*?)\]", log.read_text(errors="replace"), re.MULTILINE)
    return tasks[-1] if tasks else "before the first task"
