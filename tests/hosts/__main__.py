"""Bring up a test host by hand, from the root of the clone.

python3 tests/hosts up      a clean machine with a clone in /root/deepseek-r1
python3 tests/hosts list    the test machines that exist
python3 tests/hosts down    remove them
"""

import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tests"))

from hosts import engine, image, machine  # noqa: E402  (the package is found only from here on)
from hosts.shell import HostError, run  # noqa: E402


def up() -> None:
    host = machine.Machine(image.CLEAN_DEBIAN12)
    host.clone(REPO, "/root/deepseek-r1")
    print(f"{' '.join(host.argv('exec bash', '/root/deepseek-r1')).replace('exec', 'exec -it', 1)}")


def show() -> None:
    engine.ensure()
    print("\n".join(machine.leftovers()))


def down() -> None:
    engine.ensure()
    for name in machine.leftovers():
        run("docker", "rm", "--force", "--volumes", name)


if __name__ == "__main__":
    commands = {"up": up, "list": show, "down": down}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    try:
        commands[sys.argv[1]]()
    except HostError as error:
        sys.exit(str(error))
