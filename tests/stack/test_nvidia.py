"""The NVIDIA driver on a host that has a card and no driver: Debian's real packages.

Real are the packages (contrib, non-free) and their installation by the role, the module that DKMS
builds of them with Debian's kernel headers, apt's hold on them, the cut and the reboot. STAND-INS
are the card, a folder in the form of /sys/bus/pci/devices, and the word that the host is a machine
and no container. A container has its machine's kernel, so the module is built for Debian's
(setting nvidia_kernel) and never loaded: the role ends where it says that a reboot is needed.
"""

import json
import re
import time
from pathlib import Path

import pytest
from hosts import image
from hosts.remote import Remote
from hosts.shell import HostError
from remote import RemoteBox

REPO = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.stack, pytest.mark.timeout(1800)]

PCI = "/srv/pci-stand-in"
HOLD = "/etc/apt/preferences.d/deepseek-r1-nvidia"
OLD = "535.261.03"  # not the newest: there is something to hold off
STAND_INS = json.dumps({"__inspect_pci": PCI, "__nvidia_container": False})


class GpuBox(RemoteBox):
    """A host with the stand-in of an H100. Only what --tags host does is deployed."""

    def plug_in(self):
        for name, text in (("vendor", "0x10de"), ("device", "0x2330"), ("class", "0x030200")):
            self.machine.write(f"{PCI}/0000:01:00.0/{name}", f"{text}\n")

    def argv(self, playbook, *args):
        return super().argv(playbook, "--tags", "host", "-e", STAND_INS, *args)

    def power_cut(self):
        """The daemon that keeps a card awake finds none here, which systemd calls degraded."""
        try:
            self.machine.reboot()
        except HostError as error:
            assert "nvidia-persistenced" in str(error)
        self.machine.ssh("true", "admin").ok()

    def changed(self, run):
        return int(re.search(r"^gpu-box .*changed=(\d+)", run.output, re.MULTILINE).group(1))

    def installed(self, pattern):
        """Package -> upstream version of what is wholly installed."""
        form = "'${Package} ${db:Status-Abbrev} ${Version}\\n'"
        said = self.machine.run(f"dpkg-query -W -f {form} | grep '{pattern}'").output
        rows = (line.split() for line in said.splitlines())
        return {row[0]: row[2].partition("-")[0] for row in rows if row[1] == "ii"}


def words(run):
    return " ".join(run.output.split())


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    with Remote(image.SYSTEMD_DEBIAN12) as host:
        # The kernel that Debian has now. What was fetched to learn it goes again.
        said = host.run(
            "apt-get -qq update && apt-cache depends linux-headers-amd64; "
            "rm -rf /var/lib/apt/lists/* && mkdir -p /var/lib/apt/lists/partial"
        )
        kernel = re.search(r"Depends: linux-headers-(\S+)", said.ok().output).group(1)
        box = GpuBox(
            host, REPO, tmp_path_factory.mktemp("gpu"), engine="llamacpp", nvidia_kernel=kernel,
            nvidia_driver_branch=OLD,
        )  # fmt: skip
        box.plug_in()
        box.kernel = kernel
        yield box


def test_what_would_be_done_is_told_and_not_done(box):
    before = box.machine.listing("/etc", "/usr", "/var/lib/dpkg", "/var/lib/apt")
    run = box.deploy("check mode on the bare host", "--check", "--diff")
    assert run.changed
    said = words(run)
    assert f"nvidia-kernel-dkms={OLD}-*" in said and f"linux-headers-{box.kernel}" in said
    assert f"+Pin: version {OLD}-*" in said
    assert "+Components: contrib non-free non-free-firmware" in said
    (hardware,) = [text for text in box.report("plan")["reasons"] if text.startswith("hardware: ")]
    assert "1 x NVIDIA H100 80GB HBM3" in hardware, "the plan counts on the card"
    after = box.machine.listing("/etc", "/usr", "/var/lib/dpkg", "/var/lib/apt")
    assert before.items() ^ after.items() == set()


def test_a_run_that_was_cut_while_the_module_was_built_heals(box, tmp_path):
    process = box.start(tmp_path / "log")
    deadline = time.monotonic() + 300
    while not any("/usr/sbin/dkms" in one.command for one in box.machine.processes()):
        assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    box.power_cut()
    process.wait(60)
    assert "nvidia-kernel-dkms" not in box.installed("nvidia")

    run = box.deploy("after the cut")
    assert run.result.rc
    running = box.machine.run("uname -r").output.strip()
    assert (
        f"nvidia_reboot_allowed: value false but a reboot is needed: {running} runs, the module is"
        f" for {box.kernel}; fix: reboot the host and deploy again" in words(run)
    )


def test_the_driver_is_whole_and_of_one_version(box):
    bound = "nvidia-kernel-dkms nvidia-smi libnvidia-ml1 libcuda1 libnvidia-cfg1 nvidia-alternative"
    found = box.installed("nvidia\\|libcuda1")
    assert {name: found[name] for name in bound.split()} == dict.fromkeys(bound.split(), OLD)
    file = f"/lib/modules/{box.kernel}/updates/dkms/nvidia-current.ko"
    said = box.machine.run(f"modinfo -F version {file} && modinfo -F vermagic {file}").ok().output
    assert said.split()[:2] == [OLD, box.kernel]
    status = box.machine.run("dkms status").ok().output
    assert re.search(rf"nvidia-current/{OLD}, {re.escape(box.kernel)}, x86_64: installed", status)
    smi = box.machine.run("nvidia-smi")
    assert smi.rc and "couldn't communicate with the NVIDIA driver" in smi.output, "no card here"
    assert box.infra.service("nvidia-persistenced").is_enabled
    assert box.infra.file("/etc/modprobe.d/nvidia-blacklists-nouveau.conf").exists


def test_again_it_is_refused_before_any_change(box):
    run = box.deploy("again")
    assert run.result.rc and "Refused, nothing was changed. 1 problem:" in run.output
    assert "a reboot is needed" in run.output
    assert box.changed(run) == 0


def upgraded(box):
    """What an upgrade by hand and Debian's own unattended one would bring."""
    simulated = box.machine.run("apt-get --simulate dist-upgrade").ok().output
    unattended = box.machine.run("unattended-upgrade --dry-run --debug").ok().output
    (packages,) = re.findall(r"^Packages that will be upgraded: (.*)$", unattended, re.MULTILINE)
    return re.findall(r"^Inst (\S+)", simulated, re.MULTILINE), packages.split()


def test_upgrades_leave_it_alone(box):
    """Debian's security updates have a newer one, which the hold alone keeps away."""
    box.machine.run("apt-get -qq install --no-install-recommends unattended-upgrades").ok()
    for packages in upgraded(box):
        assert packages and not [name for name in packages if re.search("nvidia|cuda", name)]
    box.machine.run(f"mv {HOLD} /root/hold").ok()
    for packages in upgraded(box):
        assert {"nvidia-smi", "libcuda1", "nvidia-kernel-dkms"} <= set(packages)
    box.machine.run(f"mv /root/hold {HOLD}").ok()


def test_another_version_when_it_is_wanted(box):
    """Only foretold: a second build of the module would cost minutes and show nothing new."""
    box.describe(nvidia_driver_branch="535")
    run = box.deploy("a branch that the held version is of")
    assert box.changed(run) == 0 and "a reboot is needed" in run.output
    said = box.machine.run("apt-cache madison nvidia-smi").ok().output
    newer = re.search(rf"\| (535\.(?!{OLD[4:]})[\d.]+)-", said).group(1)
    box.describe(nvidia_driver_branch=newer)
    run = box.deploy("another version, in check mode", "--check", "--diff")
    assert run.changed and f"nvidia-kernel-dkms={newer}-*" in words(run)
    assert f"-Pin: version {OLD}-* +Pin: version {newer}-*" in words(run)
    box.describe(nvidia_driver_branch=OLD)


def test_it_reboots_once_and_says_what_that_did_not_mend(box):
    boot = "/proc/sys/kernel/random/boot_id"
    before = box.machine.read(boot)
    box.describe(nvidia_reboot_allowed=True)
    run = box.deploy("with a reboot allowed")
    assert run.result.rc and run.output.count("TASK [nvidia : Reboot]") == 1
    assert box.machine.read(boot) != before
    assert "the host was rebooted, and the driver does not answer" in words(run)
    assert "dmesg | grep -iE" in words(run)


def test_without_it_the_card_is_left_alone(box):
    before = box.installed("nvidia\\|cuda")
    box.describe(nvidia_driver="none")
    run = box.deploy("nvidia_driver none, after the reboot")
    assert run.result.rc == 0 and "TASK [nvidia" not in run.changes()
    assert box.installed("nvidia\\|cuda") == before
    assert box.deploy("again").changed == 0
