"""A test host that cannot reach anything, and counts what tries to."""

import re

from hosts.shell import run

RULE = "POSTROUTING -o eth0 -m conntrack --ctstate NEW -j DROP"


def _inside(machine, *argv: str) -> str:
    """A command of this machine in the host's network, before and behind all it does itself."""
    pid = run("docker", "inspect", "--format", "{{.State.Pid}}", machine.name).strip()
    return run("nsenter", "--target", pid, "--net", *argv)


def close(machine) -> None:
    """From now on no connection leaves the host, of its programs or of its containers; answers to
    those who come from outside do."""
    for program in ("iptables", "ip6tables"):
        _inside(machine, program, "-t", "mangle", "-A", *RULE.split())


def refused(machine) -> int:
    """Packets that tried to leave since."""
    count = 0
    for program in ("iptables", "ip6tables"):
        lines = _inside(machine, program, "-t", "mangle", "-vxnL", "POSTROUTING").splitlines()
        count += sum(int(line.split()[0]) for line in lines if re.search(r"\bDROP\b", line))
    return count
