"""Test hosts that are reached over SSH, as a user's other machines are."""

import json
import subprocess
import time

from . import debian, engine, image, keys, network, scan
from .machine import Machine, Result, packed
from .shell import HostError, run


class Remote(Machine):
    """A host with sshd, for root and for `admin`, who may sudo: one of image.REMOTE."""

    port = 22

    @classmethod
    def found(cls, name: str, recipe: image.Recipe) -> "Remote":
        """A host that runs already."""
        host = cls.__new__(cls)
        host.name, host.recipe, host.options = name, recipe, ()
        host.environment = debian.environment()
        return host

    def _create(self, recipe: image.Recipe, tag: str, *options: str) -> None:
        keys.ensure()
        place = ("--network", network.NAME, "--ip", network.free_address())
        super()._create(recipe, tag, *place, *options)
        self.options = options  # without the address: a copy has another one

    def _furnish(self) -> None:
        servers = "".join(f"nameserver {one}\n" for one in network.nameservers())
        self._give("/usr/local/lib/test-host/resolv.conf", servers)
        self._give("/etc/ssh/ssh_host_ed25519_key", keys.HOST.read_text(), 0o600)
        self._give("/etc/ssh/ssh_host_ed25519_key.pub", keys.public(keys.HOST))
        self._give("/root/.ssh/authorized_keys", keys.public(keys.CLIENT), 0o600)
        self._give("/home/admin/.ssh/authorized_keys", keys.public(keys.CLIENT), 0o600, 1000)
        given = self.environment.items()
        self._give("/etc/environment", "".join(f"{name}={value}\n" for name, value in given))
        pip = [(name[4:], value) for name, value in given if name.startswith("PIP_")]
        lines = (f"{name.lower().replace('_', '-')} = {value}\n" for name, value in pip)
        self._give("/etc/pip.conf", "[global]\n" + "".join(lines))
        if self.has_systemd:
            self._give("/etc/docker/daemon.json", json.dumps(docker_settings(), indent=2) + "\n")

    def _give(self, path: str, content: str, mode: int = 0o644, owner: int = 0) -> None:
        done = subprocess.run(["docker", "cp", "--archive", "-", f"{self.name}:/"],
                              input=packed(path, content, mode, owner), capture_output=True,
                              check=False)  # fmt: skip
        if done.returncode:
            raise HostError(f"cannot give {path} to {self.name}: {done.stderr.decode()}")

    @property
    def has_systemd(self) -> bool:
        return self.recipe.command == image.SYSTEMD_DEBIAN12.command

    @property
    def address(self) -> str:
        path = f'(index .NetworkSettings.Networks "{network.NAME}").IPAMConfig.IPv4Address'
        return run("docker", "inspect", "--format", f"{{{{{path}}}}}", self.name).strip()

    def ssh(self, command: str, user: str = "root", *, timeout: float = 600) -> Result:
        """Run a shell command over SSH, as Ansible does; output and errors come together."""
        argv = ["ssh", "-i", keys.CLIENT, *keys.options(), f"{user}@{self.address}", command]
        start = time.monotonic()
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", timeout=timeout, check=False,
        )  # fmt: skip
        return Result(command, done.returncode, done.stdout, time.monotonic() - start)

    def wait_ready(self, seconds: float = 180) -> None:
        """Return when every unit is up, where there is systemd, and `admin` gets in."""
        deadline = time.monotonic() + seconds
        if self.has_systemd:
            self._wait_booted(deadline)
        while (said := self.ssh("true", "admin")).rc:
            if "Connection refused" not in said.output or time.monotonic() > deadline:
                raise HostError(f"{self.name} does not let admin in: {said.output}")
            time.sleep(0.1)

    def _wait_booted(self, deadline: float) -> None:
        # Asked from within: sshd would hold its refusals during the boot against this machine.
        ask = "systemctl is-system-running --wait"
        while (state := self.run(ask, timeout=60).output.strip()) != "running":
            if state == "degraded" or time.monotonic() > deadline:
                why = self.run("systemctl --no-pager --failed; systemctl list-jobs").output
                raise HostError(f"{self.name} is not ready: {state}\n{why}")
            time.sleep(0.2)

    def reboot(self) -> None:
        """A power cycle, from outside; returns when the host is ready again."""
        self.restart()

    def listeners(self) -> set[tuple[str, int]]:
        """As seen from within; the resolver that Docker puts there is left out."""
        return {one for one in super().listeners() if one[0] != "127.0.0.11"}

    def open_ports(self) -> set[int]:
        """TCP ports that another machine can connect to."""
        return scan.open_ports(self.address)

    def inventory_lines(self, user: str = "admin") -> dict[str, str | int]:
        """Variables by which Ansible reaches this host; `admin` needs `become`."""
        return {
            "ansible_host": self.address,
            "ansible_port": self.port,
            "ansible_user": user,
            "ansible_ssh_private_key_file": str(keys.CLIENT),
            "ansible_ssh_common_args": " ".join(keys.options()),
        }


def docker_settings() -> dict:
    """Docker's settings on a host: packets that fit the way out, the registry of the tests."""
    mtu = engine.mtu()
    registry = f"{network.registry()}:{network.REGISTRY_PORT}"
    return {
        "mtu": mtu,
        "default-network-opts": {"bridge": {"com.docker.network.driver.mtu": str(mtu)}},
        "insecure-registries": [registry],
        "registry-mirrors": [f"http://{registry}"],
    }


def inventory(hosts: dict[str, Remote], user: str = "admin", **settings) -> str:
    """The text of an inventory: hosts by name, all with the same settings of the project."""
    lines = ["all:", "  hosts:"]
    for name, host in hosts.items():
        lines.append(f"    {name}:")
        values = {**host.inventory_lines(user), **settings}
        lines += [f"      {key}: {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"
