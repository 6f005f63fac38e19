"""The driver of NVIDIA's own apt repository, and the container toolkit: from refusal to reboot.

The host is a Debian 13, apt, dpkg, signatures, modprobe, systemd and the reboot are real, and so
is nvidia-ctk. STAND-INS are both repositories with what lies in their packages (see
nvidia_repository.py), the kernel's headers, an empty Makefile, and, as in test_nvidia.py, the card.
"""

import json
import re
from pathlib import Path

import apt_repository
import pytest
import yaml
from hosts import image
from hosts.remote import Remote
from nvidia_repository import NEWER, RECORDED, Repositories
from test_nvidia import HOLD, PCI, GpuBox, words

REPO = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.stack, pytest.mark.timeout(1200)]

PLACES = ("/etc", "/usr", "/var/lib/dpkg", "/var/lib/apt")
SOURCE = "/etc/apt/sources.list.d/deepseek-r1-nvidia.sources"
KEY_FILE = "8793F200.pub"  # NVIDIA's own name of it on Debian 13
BOOT = "/proc/sys/kernel/random/boot_id"


# STAND-IN of a Docker that runs, with a container beside this project's.
DOCKER = """#!/bin/sh
case "$*" in
*json*) ;;
"ps "*) echo deepseek-r1-redis-1; [ -e /run/no-shop ] || echo shop ;;
*) echo 28.5.2 ;;
esac
"""
DOCKER_UNIT = "[Service]\nExecStart=/usr/bin/sleep infinity\n"


class DriverBox(GpuBox):
    """Deploys as far as the driver: the rest of a deploy is other tests' business."""

    def cut(self):
        play = yaml.safe_load((self.folder / "deploy.yml").read_text())
        names = [task["name"] for task in play[0]["tasks"]]
        del play[0]["tasks"][names.index("NVIDIA driver") + 1 :]
        (self.folder / "driver.yml").write_text(yaml.safe_dump(play, sort_keys=False))

    def deploy(self, title, *args, **options):
        return self.play(title, "driver.yml", *args, **options)

    def refused(self, title, text):
        run = self.deploy(title)
        assert run.result.rc and "Refused, nothing was changed." in run.output, run.output[-3000:]
        assert text in words(run) and self.changed(run) == 0


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    folder, work = tmp_path_factory.mktemp("served"), tmp_path_factory.mktemp("packages")
    with Remote(image.SYSTEMD_DEBIAN13) as host, apt_repository.served(folder) as url:
        kernel = host.run("uname -r").ok().output.strip()
        ours = Repositories(folder, work, "debian13", KEY_FILE, kernel)
        box = DriverBox(
            host, REPO, tmp_path_factory.mktemp("driver"), engine="llamacpp",
            nvidia_driver="nvidia", nvidia_driver_branch=580, nvidia_apt_url=f"{url}/cuda",
            nvidia_apt_key=ours.key.fingerprint,
            nvidia_toolkit_apt_url=f"{url}/toolkit", nvidia_toolkit_apt_key=ours.key.fingerprint,
        )  # fmt: skip
        box.cut()
        box.plug_in()
        box.repositories, box.url, box.kernel = ours, url, kernel
        yield box


def test_refused_before_any_change(box):
    before = box.machine.listing(*PLACES)
    box.machine.run(f"mkdir -p {PCI}/nouveau && ln -s ../nouveau {PCI}/0000:01:00.0/driver").ok()
    run = box.deploy("nouveau, and no headers")
    assert run.result.rc and box.changed(run) == 0
    assert f"kernel: value {box.kernel} has no headers to build the driver's module" in words(run)
    assert "nvidia_reboot_allowed: value false and the driver nouveau has the card" in words(run)
    box.machine.run(f"rm -r {PCI}/nouveau {PCI}/0000:01:00.0/driver").ok()

    box.describe(nvidia_driver_branch=570)
    box.refused(
        "a branch that is not there",
        "nvidia_driver_branch: value 570 is not offered by nvidia_driver nvidia, which has"
        f" {RECORDED}, {NEWER}; fix: give one of these, or auto",
    )
    box.describe(nvidia_driver_branch=580, nvidia_apt_url="http://127.0.0.1:9")
    box.refused(
        "a repository out of reach",
        "nvidia_apt_url: value http://127.0.0.1:9 cannot be used on this host (http://127.0.0.1:9/"
        f"debian13/x86_64/{KEY_FILE}: <urlopen error [Errno 111] Connection refused>); fix: let the"
        " host reach it, or name a mirror of it, with its key in nvidia_apt_key",
    )
    own = "02182E60104FCDC26EAE1B8597A5D4CB8793F200"
    box.describe(nvidia_apt_url=f"{box.url}/cuda", nvidia_apt_key="auto")
    box.refused(
        "a repository that NVIDIA's own key has not signed",
        f"nvidia_apt_key: value {own} has not signed what lies at {box.url}/cuda/debian13/x86_64/"
        " (OpenPGP signature verification failed: ",
    )
    box.describe(nvidia_apt_key=box.repositories.key.fingerprint)
    signed = box.repositories.driver / "InRelease"
    text = signed.read_text()
    signed.write_text(text.replace("Origin: NVIDIA", "Origin: nobody"))
    box.refused(
        "a Release that was changed",
        "where that is right, the mirror was changed: set nvidia_apt_url to another one",
    )
    signed.write_text(text)
    assert box.machine.listing(*PLACES).items() ^ before.items() == set()


def test_what_would_be_done_is_told_and_not_done(box):
    box.machine.write(f"/lib/modules/{box.kernel}/build/Makefile", "")
    named = f"deb [signed-by=/root/key.asc] {box.url}/cuda/debian13/x86_64 /\n"
    box.machine.write("/root/key.asc", box.repositories.key.public)
    box.machine.write("/etc/apt/sources.list.d/own.list", named)
    run = box.deploy("check mode, where the host names the repository itself", "--check", "--diff")
    assert run.changed and f"Would install: nvidia-open={RECORDED}-*" in words(run)
    assert "+Components: contrib" in words(run) and "nvidia.asc" not in words(run)
    box.machine.run("rm /etc/apt/sources.list.d/own.list /root/key.asc").ok()

    before = box.machine.listing(*PLACES)
    run = box.deploy("check mode", "--check", "--diff")
    assert run.changed
    said = words(run)
    assert f"Would install: nvidia-open={RECORDED}-* nvidia-persistenced" in said
    assert f"+Pin: version {RECORDED}-*" in said
    assert "+Components: contrib" in said and "non-free" not in said
    key = f"/etc/apt/keyrings/nvidia.asc {box.repositories.key.fingerprint}"
    assert f"+URIs: {box.url}/cuda/debian13/x86_64/ +Suites: / +Signed-By: {key}" in said
    assert box.machine.listing(*PLACES).items() ^ before.items() == set()


def test_installed_loaded_and_kept_awake_without_a_reboot(box):
    boot = box.machine.read(BOOT)
    run = box.deploy("deploy")
    assert run.changed and box.machine.read(BOOT) == boot
    found = box.installed("nvidia\\|libcuda1\\|libnvcuvid1")
    assert {"nvidia-open", "nvidia-kernel-open-dkms", "libnvcuvid1"} < set(found)
    assert "nvidia-kernel-dkms" not in found
    del found["nvidia-installer-cleanup"]  # of Debian's contrib
    assert set(found.values()) == {RECORDED}
    assert "H100" in box.machine.run("nvidia-smi -L").ok().output
    service = box.infra.service("nvidia-persistenced")
    assert service.is_enabled and service.is_running
    assert box.deploy("again").changed == 0
    assert box.deploy("check mode, again", "--check", "--diff").changed == 0


def test_upgrades_leave_it_alone(box):
    """The hold alone keeps the newer branch away, also from libraries without NVIDIA's name."""
    newer = {"nvidia-open", "nvidia-smi", "libcuda1", "libnvcuvid1", "nvidia-persistenced"}
    upgrade = "apt-get --simulate dist-upgrade | grep -o '^Inst [^ ]*' | cut -c 6-"
    box.machine.run("apt-get -qq update").ok()
    assert not newer & set(box.machine.run(upgrade).ok().output.split())
    box.machine.run(f"mv {HOLD} /root/hold").ok()
    assert newer - {"nvidia-smi"} <= set(box.machine.run(upgrade).ok().output.split())
    box.machine.run(f"mv /root/hold {HOLD}").ok()


def test_containers_get_the_cards_described(box):
    box.describe(runtime="compose", nvidia_toolkit_apt_url="http://127.0.0.1:9")
    box.refused(
        "a toolkit out of reach",
        "nvidia_toolkit_apt_url: value http://127.0.0.1:9 cannot be used on this host"
        " (http://127.0.0.1:9/gpgkey: <urlopen error [Errno 111] Connection refused>); fix: let the"
        " host reach it, or name a mirror of it, with its key in nvidia_toolkit_apt_key, or set"
        " runtime to native",
    )
    box.describe(nvidia_toolkit_apt_url=f"{box.url}/toolkit")
    box.machine.write("/usr/local/bin/docker", DOCKER, 0o755)
    box.machine.write("/etc/systemd/system/docker.service", DOCKER_UNIT)
    box.machine.run("systemctl daemon-reload && systemctl start docker").ok()
    started = box.machine.run("systemctl show docker -p MainPID").ok().output
    run = box.deploy("beside a container of somebody else")
    assert run.result.rc
    assert (
        "runtime: value compose needs Docker to be started anew, since the container toolkit is new"
        " here, and that stops shop for a moment; fix: on the host systemctl restart docker, then"
        " deploy again; or set runtime to native"
    ) in words(run)
    box.machine.run("apt-get -qq purge nvidia-container-toolkit-base && touch /run/no-shop").ok()
    library = "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"
    box.machine.run(f"mv {library} /root/").ok()
    run = box.deploy("the card's library is gone")
    assert run.result.rc
    assert "runtime: value compose needs nvidia-ctk to describe the cards" in words(run)
    assert box.machine.run("systemctl show docker -p MainPID").ok().output != started
    assert "ERROR_LIBRARY_NOT_FOUND" in words(run) and "or set runtime to native" in words(run)
    box.machine.run(f"mv /root/{Path(library).name} {library}").ok()

    box.deploy("the toolkit").result.ok()
    described = yaml.safe_load(box.machine.read("/etc/cdi/nvidia.yaml"))
    assert described["kind"] == "nvidia.com/gpu"
    assert {"0", "all"} <= {device["name"] for device in described["devices"]}
    assert "/dev/nvidia0" in json.dumps(described["devices"])
    assert box.infra.package("nvidia-container-toolkit").is_installed
    assert box.deploy("again").changed == 0
    box.machine.run("systemctl stop docker && rm /usr/local/bin/docker").ok()
    box.describe(runtime="native")


def test_another_branch_reboots_once_and_only_when_it_may(box):
    """The module that runs stays of the old version, and nvidia-smi no longer answers."""
    boot = box.machine.read(BOOT)
    box.describe(nvidia_driver_branch=590)
    run = box.deploy("another branch")
    assert run.result.rc and box.machine.read(BOOT) == boot
    text = (
        "nvidia_reboot_allowed: value false but a reboot is needed: module"
        f" {RECORDED} runs, the libraries are {NEWER}; fix: reboot the host and deploy again"
    )
    assert text in words(run)
    box.refused("again", text)
    box.describe(nvidia_reboot_allowed=True)
    run = box.deploy("with a reboot allowed")
    assert run.changed and run.output.count("TASK [nvidia : Reboot]") == 1
    assert box.machine.read(BOOT) != boot
    assert re.search(rf" {NEWER} ", box.machine.read("/proc/driver/nvidia/version"))
    assert box.infra.service("nvidia-persistenced").is_running
    assert f"Pin: version {NEWER}-*" in box.machine.read(HOLD)
    boot = box.machine.read(BOOT)
    again = box.deploy("again")
    assert again.changed == 0, again.changes()
    assert box.machine.read(BOOT) == boot


def test_a_driver_that_works_is_nobody_s_business(box):
    """Without the sign that it is this project's, the same driver is somebody else's."""
    box.machine.run(f"rm {HOLD} {SOURCE}").ok()
    before = box.machine.listing(*PLACES)
    box.describe(nvidia_driver_branch=580)
    run = box.deploy("a driver of somebody else")
    assert run.changed == 0 and "TASK [nvidia : Packages of the driver]" not in run.changes()
    assert box.machine.listing(*PLACES).items() ^ before.items() == set()
