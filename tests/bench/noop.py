#!/usr/bin/env python3
"""What a deploy costs that has nothing to do, beside as many no-op tasks of plain Ansible.

  .venv-test/bin/python tests/bench/noop.py -i INVENTORY -l PATTERN [-n RUNS]

The hosts must be deployed already. Each run times `deploy.yml`, then a play of as many
`ansible.builtin.file` tasks as the deploy ran on a host (the recap's ok), on the same hosts over
the same connection: that is the floor. Prints the medians and their ratio.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
RECAP = re.compile(
    r"^\S+\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE
)


def timed(playbook: Path, arguments: list[str]) -> tuple[float, list[tuple[int, ...]]]:
    """Seconds of one run, and the recap of each host; ends the program when it was no no-op."""
    start = time.monotonic()
    done = subprocess.run(
        [PLAYBOOK, playbook, *arguments], cwd=REPO, capture_output=True, text=True,
        env={**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg")},
    )  # fmt: skip
    seconds = time.monotonic() - start
    recap = [tuple(map(int, found)) for found in RECAP.findall(done.stdout)]
    if done.returncode or not recap or any(any(host[1:]) for host in recap):
        sys.exit(f"{done.stdout[-3000:]}\n{done.stderr}\n{playbook}: no no-op run")
    return seconds, recap


def floor(tasks: int, folder: Path) -> Path:
    """A play of so many tasks that find everything as it should be."""
    step = {"name": "Nothing to do", "ansible.builtin.file": {"path": "/etc", "state": "directory"}}
    play = {"name": "Floor", "hosts": "all", "gather_facts": False, "become": True}
    path = folder / "floor.yml"
    path.write_text(json.dumps([{**play, "tasks": [step] * tasks}]))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-i", "--inventory", required=True)
    parser.add_argument("-l", "--limit", required=True)
    parser.add_argument("-n", "--runs", type=int, default=3)
    asked = parser.parse_args()
    arguments = ["-i", asked.inventory, "-l", asked.limit]
    deploys, floors = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(asked.runs):
            seconds, recap = timed(REPO / "deploy.yml", arguments)
            deploys.append(seconds)
            tasks = max(host[0] for host in recap)
            floors.append(timed(floor(tasks, Path(folder)), arguments)[0])
    ours, plain = statistics.median(deploys), statistics.median(floors)
    print(
        f"{len(recap)} hosts, {tasks} tasks: deploy {ours:.1f} s, plain Ansible {plain:.1f} s, "
        f"ratio {ours / plain:.2f} (medians of {asked.runs})"
    )


if __name__ == "__main__":
    main()
