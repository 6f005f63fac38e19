"""Bring up test hosts by hand, from the root of the clone.

python3 tests/hosts up [KIND...]    hosts over SSH, with an inventory in .cache/hosts/inventory.yml:
                                    systemd-debian12 systemd-debian13 ssh-debian12 ssh-debian13
                                    (all four without a KIND; those that run are used again);
                                    clean-debian12: a new machine with a clone in /root/deepseek-r1
python3 tests/hosts list            the test machines that exist
python3 tests/hosts down [KIND...]  remove them all, or those of a kind
"""

import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tests"))

from hosts import engine, image, kept, machine  # noqa: E402  (found only from here on)
from hosts.shell import HostError, run  # noqa: E402

CLEAN = image.CLEAN_DEBIAN12.name


def up(*kinds: str) -> None:
    engine.ensure()
    if CLEAN in kinds:
        host = machine.Machine(image.CLEAN_DEBIAN12)
        host.clone(REPO, "/root/deepseek-r1")
        argv = " ".join(host.argv("exec bash", "/root/deepseek-r1"))
        print(argv.replace("exec", "exec -it", 1))
    wanted = [kind for kind in kinds or image.REMOTE if kind != CLEAN]
    for kind in wanted:
        kept.get(image.REMOTE[kind])
    if not wanted:
        return
    inventory = kept.INVENTORY.relative_to(REPO)
    for name, host in kept.write_inventory().items():
        print(f"{name:18} {host.address:16} {host.name}")
    print(f"\n.venv/bin/ansible-playbook -i {inventory} deploy.yml -l {wanted[0]}")


def show(*kinds: str) -> None:
    engine.ensure()
    print("\n".join(chosen(*kinds)))


def down(*kinds: str) -> None:
    engine.ensure()
    for name in chosen(*kinds):
        run("docker", "rm", "--force", "--volumes", name)


def chosen(*kinds: str) -> list[str]:
    starts = tuple(f"{machine.LABEL}-{kind}" for kind in kinds or ("",))
    return [name for name in machine.leftovers() if name.startswith(starts)]


if __name__ == "__main__":
    commands = {"up": up, "list": show, "down": down}
    command, *kinds = sys.argv[1:] or [""]
    if command not in commands or set(kinds) - {CLEAN, *image.REMOTE}:
        sys.exit(__doc__)
    try:
        commands[command](*kinds)
    except HostError as error:
        sys.exit(str(error))
