"""The test hosts themselves: what they stand for is really there."""

import uuid

import pytest
from hosts import image, registry
from hosts.remote import Remote, inventory
from hosts.shell import run

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]


@pytest.fixture
def ansible(repo, tmp_path):
    """Return a function that runs a module as root on a host and gives what Ansible said."""

    def call(host: Remote, *module: str) -> str:
        file = tmp_path / "hosts.yml"
        file.write_text(inventory({"box": host}))
        return run(repo / ".venv-test/bin/ansible", "-i", file, "box", "--become", "-m", *module)

    return call


@pytest.fixture(scope="module")
def bare_tar(tmp_path_factory):
    """The smallest system that says something: bash, cat and their libraries."""
    programs = ["/bin/bash", "/bin/cat"]
    words = run("ldd", *programs).split()
    libraries = sorted({word for word in words if word.startswith("/") and word[-1] != ":"})
    file = tmp_path_factory.mktemp("bare") / "bare.tar"
    run("tar", "-ch", "-f", file, "-C", "/", *(name.lstrip("/") for name in programs + libraries))
    return file


@pytest.mark.parametrize("recipe", image.SYSTEMD, ids=lambda recipe: recipe.name)
def test_a_systemd_host_boots_and_reboots_as_a_machine(recipe, ansible):
    with Remote(recipe) as host:
        assert host.ssh("systemctl is-system-running").ok().output == "running\n"
        assert "pong" in ansible(host, "ping")
        address, boots = host.address, [boot_id(host)]
        assert "rebooted: true" in ansible(host, "reboot")
        boots.append(boot_id(host))
        host.reboot()
        boots.append(boot_id(host))
        assert len(set(boots)) == 3
        assert "pong" in ansible(host, "ping")
        assert host.address == address
        assert host.open_ports() == {22}


def boot_id(host: Remote) -> str:
    return host.ssh("cat /proc/sys/kernel/random/boot_id", "admin").ok().output


def test_docker_on_a_host_runs_an_image_of_a_tar_and_one_of_the_registry(bare_tar):
    local = f"{image.REPOSITORY}/bare:{uuid.uuid4().hex[:6]}"
    run("docker", "import", bare_tar, local)
    try:
        pushed = registry.push(local, "library/bare:1")
    finally:
        run("docker", "rmi", local)
    with Remote(image.SYSTEMD_DEBIAN12) as host:
        host.copy(bare_tar, "/root/bare.tar")
        host.ssh("docker import /root/bare.tar of-a-tar && docker compose version").ok()
        # The host as its containers see it: its sshd says what it is.
        command = "/bin/bash -c 'read -r line </dev/tcp/172.17.0.1/22 && echo $line'"
        for name in ("of-a-tar", pushed, "bare:1"):
            said = host.ssh(f"docker run --quiet --rm {name} {command}").ok().output
            assert said.startswith("SSH-2.0-OpenSSH"), name
        assert "overlay2" in host.ssh("docker info").ok().output


def test_a_rented_box_has_no_init_system_and_its_copies_are_its_own(ansible):
    with Remote(image.SSH_DEBIAN13) as host:
        assert "pong" in ansible(host, "ping")
        assert host.read("/proc/1/comm") != "systemd\n"
        assert host.ssh("test -e /run/systemd/system").rc == 1
        host.write("/root/mark", "of the first\n")
        with host.copies() as copy, copy() as other:
            assert other.address != host.address
            assert other.ssh("cat /root/mark").ok().output == "of the first\n"
            other.ssh("rm /root/mark").ok()
        assert host.read("/root/mark") == "of the first\n"


def test_a_host_with_another_key_is_refused():
    with Remote(image.SSH_DEBIAN12) as host:
        host.run("rm /etc/ssh/ssh_host_* && ssh-keygen -A").ok()
        said = host.ssh("true")
        assert said.rc == 255 and "Host key verification failed" in said.output
