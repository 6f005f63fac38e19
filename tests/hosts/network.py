"""The network of the test hosts: each has an address that it keeps through reboots."""

import fcntl
import ipaddress
import json
import random
from pathlib import Path

from . import engine
from .shell import CACHE, run

NAME = "deepseek-r1-test"
REGISTRY_PORT = 5000


def subnet() -> ipaddress.IPv4Network:
    """The network's addresses; the network is made where it is missing."""
    with (CACHE / "network.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not run("docker", "network", "ls", "--quiet", "--filter", f"name=^{NAME}$"):
            # Docker knows which addresses are free, but gives fixed ones only where it was told.
            _create()
            free = _subnet()
            run("docker", "network", "rm", NAME)
            _create(f"--subnet={free}")
        return _subnet()


def gateway() -> str:
    """This machine, as the test hosts see it."""
    return str(subnet()[1])


def registry() -> str:
    """The address kept for the registry of images."""
    return str(subnet()[2])


def free_address() -> str:
    """An address no host has; a random one, since several runs may ask at once."""
    hosts = run("docker", "ps", "--all", "--quiet", "--filter", f"network={NAME}").split()
    form = f'{{{{(index .NetworkSettings.Networks "{NAME}").IPAMConfig.IPv4Address}}}}'
    taken = run("docker", "inspect", "--format", form, *hosts).split() if hosts else []
    net = subnet()
    while (address := str(net[random.randrange(256, net.num_addresses - 1)])) in taken:
        pass
    return address


def nameservers() -> list[str]:
    """This machine's nameservers, as far as another machine can ask them."""
    for file in map(Path, ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")):
        lines = file.read_text().splitlines() if file.exists() else []
        found = [line.split()[1] for line in lines if line.startswith("nameserver ")]
        if usable := [one for one in found if not ipaddress.ip_address(one).is_loopback]:
            return usable
    return []


def _create(*options: str) -> None:
    mtu = f"--opt=com.docker.network.driver.mtu={engine.mtu()}"
    run("docker", "network", "create", mtu, *options, NAME)


def _subnet() -> ipaddress.IPv4Network:
    config = json.loads(run("docker", "network", "inspect", NAME))[0]["IPAM"]["Config"]
    return ipaddress.IPv4Network(config[0]["Subnet"])
