"""What is decided about a host's NVIDIA driver, a row for each decision; and how a host is read.

No machine of the tests has a card. The report of nvidia-smi is a recording (see data/), the PCI
numbers are those of the list pci.ids of 2025-06-09, what apt offers is what Debian's did in autumn
2026, and its complaints were recorded on test hosts. All else is MADE BY HAND in the form that the
programs give it: what Ubuntu and NVIDIA offer, the lines of lspci and mokutil,
/proc/driver/nvidia/version, kernels and states of hosts. docs/drivers.md has the whole list.
"""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

DATA = Path(__file__).parent / "data"

# Made by hand, after `lspci -nnk`.
H100 = "01:00.0 3D controller [0302]: NVIDIA Corporation GH100 [H100 SXM5] [10de:2330] (rev a1)\n"
P40 = "02:00.0 3D controller [0302]: NVIDIA Corporation GP102GL [Tesla P40] [10de:1b38] (rev a1)\n"
RTX = "01:00.0 VGA compatible controller [0300]: NVIDIA Corporation GB202 [10de:2b85] (rev a1)\n"
K80 = "01:00.0 3D controller [0302]: NVIDIA Corporation GK210GL [Tesla K80] [10de:102d] (rev a1)\n"
NEW = "01:00.0 3D controller [0302]: NVIDIA Corporation Device [10de:23ff] (rev a1)\n"
AMD = "03:00.0 VGA compatible controller [0300]: AMD/ATI Navi 31 [1002:744c] (rev c8)\n"
SOUND = "01:00.1 Audio device [0403]: NVIDIA Corporation AD102 Audio [10de:22ba] (rev a1)\n"
NOUVEAU = "\tSubsystem: NVIDIA Corporation Device [10de:16c1]\n\tKernel driver in use: nouveau\n"
VFIO = "\tKernel driver in use: vfio-pci\n"

OLD, NEWER, TRIXIE = "535.261.03-1", "535.309.01-0+deb12u1", "550.163.01-2"
LIBRARIES = ("nvidia-smi", "libnvidia-ml1", "libcuda1", "libnvidia-cfg1")
KERNEL = "6.1.0-56-amd64"
HEADERS = {f"linux-headers-{KERNEL}": ["6.1.192-2"]}
BOOKWORM = {
    "nvidia-open-kernel-dkms": [OLD],
    **{name: [NEWER, OLD] for name in ("nvidia-kernel-dkms", *LIBRARIES)},
    "nvidia-persistenced": ["535.171.04-1~deb12u1"],
    **HEADERS,
}
# Debian 13 has one version, of both kinds of modules.
DEBIAN13 = {
    **{name: [TRIXIE] for name in ("nvidia-open-kernel-dkms", "nvidia-kernel-dkms", *LIBRARIES)},
    "nvidia-persistenced": ["550.163.01-1"],
    **HEADERS,
}
# Made by hand of the versions that packages.ubuntu.com names for Ubuntu 24.04.
UBUNTU = {
    f"nvidia-{name}": ["580.173.02-0ubuntu0.24.04.1"]
    for name in ("headless-580-server-open", "headless-580-server", "utils-580-server")
} | HEADERS
# Made by hand.
NVIDIAS = {
    name: ["590.44.01-1", "580.95.05-1", "570.86.15-1"] for name in ("nvidia-open", "cuda-drivers")
} | HEADERS
# What the role makes of its settings; made by hand.
REPOSITORIES = {
    "nvidia_apt": {"set": "http://mirror", "url": "http://mirror/debian13/x86_64/", "key": "02AB"},
    "nvidia_toolkit_apt": {"set": "http://box", "url": "http://box/stable/deb/amd64/", "key": "C9"},
}
PIN = "# nvidia_driver: distribution\nPackage: *nvidia*\nPin: version 535.309.01-*\n"
THERE = dict.fromkeys(("nvidia-kernel-dkms", *LIBRARIES), NEWER) | {"nvidia-persistenced": "535"}


@pytest.fixture(scope="module")
def nvidia(load_plugin):
    return load_plugin("roles/nvidia/filter_plugins/nvidia.py")


@pytest.fixture(scope="module")
def rules(repo):
    found = yaml.safe_load((repo / "roles/nvidia/vars/main.yml").read_text(encoding="utf-8"))
    tables = {"architectures", "cards", "packages", "engines"}
    return found["__nvidia_rules"] | {name: found[f"__nvidia_{name}"] for name in tables}


@pytest.fixture
def decide(nvidia, rules):
    """Decide about a Debian 12 with an H100 and no driver, but for what a test changes."""

    def make(**changes):
        seen = {
            "pci": H100, "answers": False, "driver_version": None, "loaded": "", "library": "",
            "kernel": KERNEL, "running_kernel": KERNEL, "headers": False, "built": "",
            "booted_with_it": False, "secure_boot": False, "key_enrolled": False, "installed": {},
            "offered": BOOKWORM, "apt_said": {}, "pin": "", "toolkit": False,
        }  # fmt: skip
        wanted = {
            "driver": "distribution", "branch": "auto", "reboot_allowed": False,
            "system": "debian", "container": False, "engine": "ollama", "plan_hardware": {},
            "load_tried": False, "package_changes": False, "needs_toolkit": False,
            "repositories": REPOSITORIES,
        }  # fmt: skip
        for name, value in changes.items():
            (seen if name in seen else wanted)[name] = value
            assert name in seen or name in wanted
        return nvidia.nvidia_decision(seen, wanted, rules)

    return make


def done(**changes):
    """A host on which this project's driver is installed and built."""
    return {
        "pin": PIN, "installed": THERE, "headers": True, "library": "535.309.01",
        "built": "535.309.01", "offered": None,
    } | changes  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"driver": "none"}, "nvidia_driver is none"),
        ({"pci": ""}, "no NVIDIA card"),
        ({"pci": AMD + SOUND}, "no NVIDIA card"),
        ({"container": True}, "the host is a container"),
        ({"pci": H100 + VFIO}, "its cards are given to virtual machines"),
        ({"pci": K80}, "card [10de:102d] (Kepler or older) is too old for every engine"),
        ({"pci": P40 + VFIO + K80}, "card [10de:102d] (Kepler or older) is too old"),
        ({"answers": True, "driver_version": "535.10"}, "a driver answers, and it is not of this"),
        ({"system": "alpine"}, "system alpine is not known"),
    ],
)
def test_hosts_that_are_left_alone(decide, changes, reason):
    found = decide(**changes)
    assert not found["acts"] and not found["problems"] and not found["packages"]
    assert found["reasons"][0].startswith(f"NVIDIA driver: {reason}")


def test_a_host_is_looked_at_before_apt_is_asked_and_only_then_decided(nvidia, rules, decide):
    wanted = {"driver": "distribution", "branch": "auto", "system": "debian", "container": False}
    first = nvidia.nvidia_decision(
        {"pci": H100, "answers": True, "driver_version": "550.1"}, wanted, rules
    )
    assert first["looks"] and not first["acts"]
    assert decide(offered=None)["asks"]
    assert not decide(**done())["asks"], "a host that is done costs no list of packages"
    assert decide(**done(headers=False))["asks"]
    assert decide(**done(needs_toolkit=True))["asks"]
    assert not decide(**done(needs_toolkit=True, toolkit=True))["asks"]


@pytest.mark.parametrize(
    ("changes", "modules", "version"),
    [
        # Debian 12: the fixed version is there of the proprietary modules only.
        ({}, "proprietary", "535.309.01"),
        # Module and libraries of one version, also where that is not the newest of each.
        ({"offered": {**BOOKWORM, "nvidia-kernel-dkms": [OLD]}}, "proprietary", "535.261.03"),
        ({"branch": "535.261.03"}, "proprietary", "535.261.03"),
        ({"driver": "nvidia", "offered": NVIDIAS}, "open", "590.44.01"),
        ({"driver": "nvidia", "offered": NVIDIAS, "branch": "570"}, "open", "570.86.15"),
        ({"driver": "nvidia", "offered": NVIDIAS, "pci": RTX}, "open", "590.44.01"),
        # Pascal: the last branch that has it. Beside a newer card the older one decides.
        ({"driver": "nvidia", "offered": NVIDIAS, "pci": P40}, "proprietary", "580.95.05"),
        ({"driver": "nvidia", "offered": NVIDIAS, "pci": P40 + H100}, "proprietary", "580.95.05"),
        # Debian 13: before branch 560 the proprietary modules, though it has both.
        ({"offered": DEBIAN13}, "proprietary", "550.163.01"),
        ({"offered": DEBIAN13, "pci": P40}, "proprietary", "550.163.01"),
        # Ubuntu: a branch is in the packages' names, and both kinds are there.
        ({"system": "ubuntu", "offered": UBUNTU}, "open", "580.173.02"),
        ({"system": "ubuntu", "offered": UBUNTU, "branch": "580"}, "open", "580.173.02"),
        ({"system": "ubuntu", "offered": UBUNTU, "pci": RTX}, "open", "580.173.02"),
        ({"system": "ubuntu", "offered": UBUNTU, "pci": P40}, "proprietary", "580.173.02"),
        ({"system": "ubuntu", "driver": "nvidia", "offered": NVIDIAS}, "open", "590.44.01"),
        # A card of a virtual machine has no say.
        ({"driver": "nvidia", "offered": NVIDIAS, "pci": P40 + VFIO + H100}, "open", "590.44.01"),
    ],
)
def test_the_driver_that_is_chosen(decide, changes, modules, version):
    found = decide(**changes)
    assert (found["modules"], found["version"], found["problems"]) == (modules, version, [])
    assert found["acts"]
    assert f"{version} of {changes.get('driver', 'distribution')}" in found["reasons"][0]


def test_what_is_installed(decide, nvidia, rules):
    names = ("nvidia-kernel-dkms", *LIBRARIES)
    expected = [f"{name}=535.309.01-*" for name in names]
    expected += ["nvidia-persistenced", f"linux-headers-{KERNEL}"]
    assert decide()["packages"] == expected
    assert decide()["gpus"] == [{"name": "NVIDIA H100 80GB HBM3"}]
    # Headers of the kernels to come, where the kernels to come are installed.
    later = decide(installed={"linux-image-amd64": "6.1.192-2"}, headers=True)
    assert later["packages"][-1] == "linux-headers-amd64"
    ubuntu = decide(system="ubuntu", headers=True, offered=UBUNTU)
    assert ubuntu["packages"] == [
        "nvidia-headless-580-server-open=580.173.02-*", "nvidia-utils-580-server=580.173.02-*"
    ]  # fmt: skip
    own = decide(driver="nvidia", headers=True, offered=NVIDIAS)
    assert own["packages"] == ["nvidia-open=590.44.01-*", "nvidia-persistenced"]
    own = decide(driver="nvidia", headers=True, offered=NVIDIAS, pci=P40)
    assert own["packages"] == ["cuda-drivers=580.95.05-*", "nvidia-persistenced"]
    own = decide(driver="nvidia", headers=True, offered=NVIDIAS, system="ubuntu")
    assert own["packages"] == ["nvidia-open=590.44.01-*"]
    for kernel, flavour in {
        "6.1.0-56-cloud-amd64": "cloud-amd64", "6.12.107+deb13-amd64": "amd64",
        "6.8.0-1020-aws": "aws", "6.1.0-0.deb11.13-amd64": "amd64", "5.10.0": "",
    }.items():  # fmt: skip
        assert nvidia.kernel_flavour(kernel) == flavour


BLACKWELL = "GeForce RTX 5090 [10de:2b85] (Blackwell)"
CPU = ", or set nvidia_driver to none to serve from the CPU"
REFUSALS = {
    "Secure Boot without an enrolled key": (
        {"secure_boot": True},
        "Secure Boot: value enabled lets the kernel load no module that is built here, because the"
        " key of DKMS is not enrolled; fix: on the host install dkms and mokutil, make the key"
        " (dkms generate_mok; on Ubuntu update-secureboot-policy --new-key), mokutil --import it,"
        " reboot and confirm at the console; or switch Secure Boot off in the firmware" + CPU,
    ),
    "no headers": (
        {"offered": {name: BOOKWORM[name] for name in BOOKWORM if "headers" not in name}},
        f"kernel: value {KERNEL} has no headers to build the driver's module with: linux-headers-"
        f"{KERNEL} is neither installed nor offered by apt; fix: bring the kernel up to date"
        " (apt-get dist-upgrade) and reboot, or install its headers" + CPU,
    ),
    "nouveau in use": (
        {"pci": H100 + NOUVEAU},
        "nvidia_reboot_allowed: value false and the driver nouveau has the card, which only a"
        " reboot takes from it; fix: set nvidia_reboot_allowed to true, which blacklists nouveau"
        " and reboots the host once; or put 'blacklist nouveau' into a file in /etc/modprobe.d,"
        " update-initramfs -u and reboot yourself" + CPU,
    ),
    "a branch that the card no longer has": (
        {"driver": "nvidia", "offered": NVIDIAS, "pci": P40, "branch": "590"},
        "nvidia_driver_branch: value 590 has no driver for Tesla P40 [10de:1b38] (Maxwell or"
        " Pascal): the last branch that has is 580; fix: set nvidia_driver_branch to 580, or to"
        " auto" + CPU,
    ),
    "a repository that has dropped the card": (
        {"driver": "nvidia", "pci": P40,
         "offered": {name: ["590.44.01-1"] for name in ("nvidia-open", "cuda-drivers")}},
        "nvidia_driver: value nvidia has no driver for Tesla P40 [10de:1b38] (Maxwell or Pascal):"
        " the last branch that has is 580; fix: set nvidia_driver to distribution" + CPU,
    ),
    "a card that is too new": (
        {"pci": RTX},
        f"nvidia_driver: value distribution offers 535.261.03, 535.309.01, but {BLACKWELL} needs"
        " branch 570 or newer; fix: set nvidia_driver to nvidia" + CPU,
    ),
    "a card that is too new for Debian 13": (
        {"pci": RTX, "offered": DEBIAN13},
        f"nvidia_driver: value distribution offers 550.163.01, but {BLACKWELL} needs branch 570 or"
        " newer; fix: set nvidia_driver to nvidia" + CPU,
    ),
    "a branch that Ubuntu has no packages of": (
        {"system": "ubuntu", "offered": {}, "branch": "599"},
        "nvidia_driver_branch: value 599 finds no whole driver in its apt source"
        " (nvidia-headless-599-server-open, nvidia-utils-599-server, nvidia-headless-599-server);"
        " fix: give another one, or auto, or let apt-get update work on the host" + CPU,
    ),
    "a branch that is too old for the card": (
        {"driver": "nvidia", "pci": RTX, "branch": "550",
         "offered": {name: ["570.86.15-1", TRIXIE] for name in ("nvidia-open", "cuda-drivers")}},
        f"nvidia_driver: value nvidia offers 550.163.01, 570.86.15, but {BLACKWELL} needs branch"
        " 570 or newer; fix: set nvidia_driver_branch to auto" + CPU,
    ),
    "cards that no driver has together": (
        {"driver": "nvidia", "offered": NVIDIAS, "pci": RTX + P40},
        "nvidia_driver: value nvidia offers 570.86.15, 580.95.05, 590.44.01, and none of them has"
        f" modules that fit all of: {BLACKWELL}, Tesla P40 [10de:1b38] (Maxwell or Pascal); fix:"
        " take one of the cards out" + CPU,
    ),
    "a branch that is not offered": (
        {"branch": "999"},
        "nvidia_driver_branch: value 999 is not offered by nvidia_driver distribution, which has"
        " 535.261.03, 535.309.01; fix: give one of these, or auto" + CPU,
    ),
    "no package at all": (
        {"offered": HEADERS},
        "nvidia_driver: value distribution finds no whole driver in its apt source"
        " (nvidia-open-kernel-dkms, nvidia-smi, libnvidia-ml1, libcuda1, libnvidia-cfg1,"
        " nvidia-kernel-dkms); fix: let apt-get update work on the host" + CPU,
    ),
    "NVIDIA's repository out of reach": (
        {"driver": "nvidia", "offered": BOOKWORM, "apt_said": {"nvidia_apt": "KEY: refused"}},
        "nvidia_apt_url: value http://mirror cannot be used on this host (KEY: refused); fix: let"
        " the host reach it, or name a mirror of it, with its key in nvidia_apt_key" + CPU,
    ),
    "NVIDIA's repository without a driver": (
        {"driver": "nvidia", "offered": BOOKWORM, "apt_said": {"nvidia_apt": ""}},
        "nvidia_apt_url: value http://mirror has none of these packages at"
        " http://mirror/debian13/x86_64/: nvidia-open, cuda-drivers; fix: let the host reach it, or"
        " name a mirror of it, with its key in nvidia_apt_key" + CPU,
    ),
    "NVIDIA's repository of another key": (
        {"driver": "nvidia", "offered": BOOKWORM, "apt_said": {"nvidia_apt": "is not signed."}},
        "nvidia_apt_key: value 02AB has not signed what lies at http://mirror/debian13/x86_64/ (is"
        " not signed.); fix: give the fingerprint of its key as its owner publishes it; where that"
        " is right, the mirror was changed: set nvidia_apt_url to another one" + CPU,
    ),
    "no container toolkit for containers": (
        {"needs_toolkit": True, "apt_said": {"nvidia_toolkit_apt": "GPGKEY: refused"}},
        "nvidia_toolkit_apt_url: value http://box cannot be used on this host (GPGKEY: refused);"
        " fix: let the host reach it, or name a mirror of it, with its key in"
        " nvidia_toolkit_apt_key, or set runtime to native",
    ),
    "the same where the driver is there": (
        done(needs_toolkit=True, answers=True, offered=BOOKWORM),
        "nvidia_toolkit_apt_url: value http://box has none of these packages at"
        " http://box/stable/deb/amd64/: nvidia-container-toolkit; fix: let the host reach it, or"
        " name a mirror of it, with its key in nvidia_toolkit_apt_key, or set runtime to native",
    ),
    "a card that the planner does not know": (
        {"pci": NEW},
        "plan_hardware: value {} says nothing of card [10de:23ff] (Hopper), which the planner does"
        " not know; fix: describe the host there: {gpus: [{name, memory_mib, compute_capability}],"
        " ram_mib}" + CPU,
    ),
    "a driver to install that is too old for the engine": (
        {"engine": "vllm"},
        "engine: value vllm is CUDA 13 and needs driver 580 or newer, but nvidia_driver"
        " distribution gives 535.309.01; fix: set nvidia_driver to nvidia with"
        " nvidia_driver_branch auto, or set engine to ollama",
    ),
    "a driver of others that is too old for the engine": (
        {"engine": "vllm", "answers": True, "driver_version": "550.54.14"},
        "engine: value vllm is CUDA 13 and needs driver 580 or newer, but the host has 550.54.14;"
        " fix: bring driver 580 or newer to the host, or set engine to ollama",
    ),
    "a driver that is too old for every engine": (
        {"engine": "ollama", "answers": True, "driver_version": "470.256.02"},
        "engine: value ollama is CUDA 12 and needs driver 525 or newer, but the host has"
        " 470.256.02; fix: bring driver 525 or newer to the host",
    ),
    "an old driver in a rented container": (
        {"engine": "vllm", "answers": True, "driver_version": "570.1", "container": True},
        "engine: value vllm is CUDA 13 and needs driver 580 or newer, but the host has 570.1; fix:"
        " bring driver 580 or newer to the host, or set engine to ollama",
    ),
    "module and libraries that differ": (
        done(loaded="535.261.03"),
        "nvidia_reboot_allowed: value false but a reboot is needed: module 535.261.03 runs, the"
        " libraries are 535.309.01; fix: reboot the host and deploy again, or set"
        " nvidia_reboot_allowed to true" + CPU,
    ),
    "the same of somebody else's driver": (
        {"loaded": "550.54.14", "library": "550.90.07"},
        "nvidia_reboot_allowed: value false but a reboot is needed: module 550.54.14 runs, the"
        " libraries are 550.90.07; fix: reboot the host and deploy again, or set"
        " nvidia_reboot_allowed to true" + CPU,
    ),
    "an older driver than the installed one": (
        done(answers=True, branch="535.261.03", offered=BOOKWORM),
        "nvidia_driver_branch: value 535.261.03 is driver 535.261.03, older than 535.309.01, which"
        " is installed; fix: set host_package_changes to true to allow it" + CPU,
    ),
    "the same of another source": (
        done(answers=True, driver="distribution", offered=BOOKWORM,
             pin=PIN.replace("distribution", "nvidia").replace("535.309.01", "580.95.05"),
             installed=dict.fromkeys(LIBRARIES, "580.95.05-1")),
        "nvidia_driver: value distribution is driver 535.309.01, older than 580.95.05, which is"
        " installed; fix: set host_package_changes to true to allow it" + CPU,
    ),
    "a module for another kernel": (
        done(running_kernel="6.1.0-50-amd64"),
        f"nvidia_reboot_allowed: value false but a reboot is needed: 6.1.0-50-amd64 runs, the"
        f" module is for {KERNEL}; fix: reboot the host and deploy again, or set"
        " nvidia_reboot_allowed to true" + CPU,
    ),
    "a module that does not load": (
        done(load_tried=True),
        "nvidia_reboot_allowed: value false but a reboot is needed: the module does not load into"
        " the running system; fix: reboot the host and deploy again, or set nvidia_reboot_allowed"
        " to true" + CPU,
    ),
    "a module that does not load after a reboot either": (
        done(load_tried=True, booted_with_it=True, reboot_allowed=True),
        "nvidia_driver: value distribution is installed and does not answer, though the host has"
        " booted with it; fix: read why on the host: dmesg | grep -iE 'nvrm|nvidia'" + CPU,
    ),
    "a driver that runs and does not answer": (
        done(loaded="535.309.01", reboot_allowed=True),
        "nvidia_driver: value distribution is installed and does not answer, though module"
        " 535.309.01 is loaded; fix: read why on the host: dmesg | grep -iE 'nvrm|nvidia'" + CPU,
    ),
    "a broken driver of somebody else": (
        {"library": "550.54.14"},
        "nvidia_driver: value distribution finds driver 550.54.14 of another source, which does"
        " not answer; fix: repair it, or remove it (apt-get purge) and let this project install"
        " one" + CPU,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(decide, case):
    changes, text = REFUSALS[case]
    assert decide(**changes)["problems"] == [text]


def test_the_page_of_decisions_names_what_there_is(repo):
    page = (repo / "docs/drivers.md").read_text(encoding="utf-8")
    files = ("unit/test_nvidia.py", "stack/test_nvidia.py", "stack/test_nvidia_repository.py")
    code = "".join((repo / "tests" / file).read_text(encoding="utf-8") for file in files)
    named = set(re.findall(r"`(test_\w+)`", page))
    assert named <= set(re.findall(r"^def (test_\w+)", code, re.MULTILINE))
    cells = {cell.strip() for cell in re.split(r"[|;:()\n]", page)}
    assert set(REFUSALS) <= cells


def test_a_reboot_comes_before_what_it_would_take_away(repo):
    """The role host makes folders in /run, and nginx is tested against them."""
    (play,) = yaml.safe_load((repo / "deploy.yml").read_text(encoding="utf-8"))
    roles = [task.get("ansible.builtin.import_role", {}) for task in play["tasks"]]
    assert roles.index({"name": "nvidia"}) < roles.index({"name": "host"})


def test_all_refusals_come_at_once(decide):
    found = decide(secure_boot=True, offered=dict(BOOKWORM) | {f"linux-headers-{KERNEL}": []},
                   pci=NEW + NOUVEAU, engine="vllm")  # fmt: skip
    subjects = [text.partition(":")[0] for text in found["problems"]]
    assert subjects == ["Secure Boot", "kernel", "nvidia_reboot_allowed", "plan_hardware", "engine"]


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, {"packages"}),
        ({"secure_boot": True, "key_enrolled": True}, {"packages"}),
        ({"pci": H100 + NOUVEAU, "reboot_allowed": True}, {"packages", "blacklist"}),
        # A run that was cut off: some packages, no module, the module of another version.
        (done(installed={"libcuda1": NEWER}, offered=BOOKWORM), {"packages"}),
        (done(installed={n: v for n, v in THERE.items() if "persist" not in n}), {"packages"}),
        (done(built=""), {"build"}),
        (done(built="535.261.03"), {"build"}),
        (done(), {"load"}),
        (done(reboot_allowed=True), {"load"}),
        (done(reboot_allowed=True, load_tried=True), {"reboot"}),
        (done(reboot_allowed=True, loaded="535.261.03"), {"reboot"}),
        (done(reboot_allowed=True, running_kernel="6.1.0-50-amd64"), {"reboot"}),
        (done(reboot_allowed=True, pci=H100 + NOUVEAU), {"blacklist", "reboot"}),
        ({"loaded": "550.1", "library": "550.2", "reboot_allowed": True}, {"reboot"}),
        # Done: nothing is left, whatever newer version there is.
        (done(answers=True, loaded="535.309.01"), set()),
        (done(answers=True, branch="535"), set()),
        (done(answers=True, offered=BOOKWORM), set()),
        # A wanted change: another branch, another source.
        (
            done(answers=True, branch="535.261.03", offered=BOOKWORM, package_changes=True),
            {"packages"},
        ),
        (done(answers=True, driver="nvidia", offered=NVIDIAS), {"packages"}),
    ],
)
def test_steps_follow_from_the_state(decide, changes, steps):
    found = decide(**changes)
    assert found["problems"] == []
    names = ("packages", "blacklist", "build", "load", "reboot")
    assert {name for name in names if found[name]} == steps


@pytest.fixture(scope="module")
def host(load_plugin):
    return load_plugin("roles/nvidia/library/nvidia_host.py")


def test_the_version_of_the_module_that_runs(host):
    """Made by hand, after /proc/driver/nvidia/version of either kind."""
    plain = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15\n"
    free = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build\n"
    assert host.module_version(plain) == "535.183.01"
    assert host.module_version(free) == "550.54.15"
    assert host.module_version("") == ""


def test_the_version_of_the_libraries(host, tmp_path):
    (tmp_path / "libnvidia-ml.so.535.309.01").touch()
    (tmp_path / "libnvidia-ml.so.1").symlink_to("libnvidia-ml.so.535.309.01")
    assert host.library_version(tmp_path / "libnvidia-ml.so.1") == "535.309.01"
    assert host.library_version(tmp_path / "missing.so.1") == ""


@pytest.mark.parametrize(
    ("said", "variable", "on"),
    [
        # Made by hand, after mokutil; and the firmware's variable, whose last byte tells.
        ("SecureBoot enabled\n", b"", True),
        ("SecureBoot enabled\nSecureBoot validation is disabled in shim\n", b"", True),
        ("SecureBoot disabled\n", b"\x06\0\0\0\x01", False),
        ("SecureBoot disabled\nPlatform is in Setup Mode\n", b"", False),
        ("EFI variables are not supported on this system\n", b"", False),
        ("", b"\x06\0\0\0\x01", True),
        ("", b"\x06\0\0\0\0", False),
        ("", b"", False),
    ],
)
def test_secure_boot(host, said, variable, on):
    assert host.secure_boot(said, variable) is on


def test_an_enrolled_key(host):
    """Made by hand, after mokutil."""
    assert host.key_enrolled("/var/lib/dkms/mok.pub is already enrolled\n")
    assert not host.key_enrolled("/var/lib/dkms/mok.pub is not enrolled\n")
    assert not host.key_enrolled("/var/lib/dkms/mok.pub is already in the enrollment request\n")


def test_what_apt_offers_is_read(host):
    said = (
        "nvidia-smi | 535.309.01-0+deb12u1 | http://mirror/debian-security bookworm Packages\n"
        "nvidia-smi | 535.261.03-1 | http://mirror/debian bookworm/non-free amd64 Packages\n"
        "nvidia-smi | 535.261.03-1 | http://other/debian bookworm/non-free amd64 Packages\n"
        "linux-headers-amd64 |  6.1.192-2 | http://mirror/debian bookworm/main amd64 Packages\n"
    )
    assert host.versions(said) == {
        "nvidia-smi": [NEWER, OLD],
        "linux-headers-amd64": ["6.1.192-2"],
    }


def test_parts_of_the_distribution_are_added_where_they_are_missing(host, tmp_path):
    """Made by hand, after `apt-get indextargets`. The key is said as the host's own file does."""
    (tmp_path / "debian.sources").write_text(
        "Types: deb\nURIs: http://mirror/debian\nSuites: bookworm\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian.gpg\n\nTypes: deb\nURIs: http://other/x\n"
    )
    (tmp_path / "old.list").write_text(
        "# security\ndeb [arch=amd64 signed-by=/k.gpg] http://mirror/security sid-security main"
    )

    def target(entry, uri, suite, component="main", origin="Debian"):
        return (
            f"Origin: {origin}\nComponent: {component}\nCreated-By: Packages\nRelease: {suite}\n"
            f"Repo-URI: {uri}\nSourcesentry: {tmp_path}/{entry}\n"
        )

    main = target("debian.sources:1", "http://mirror/debian/", "bookworm")
    free = target("debian.sources:1", "http://mirror/debian/", "bookworm", "non-free")
    security = target("old.list:2", "http://mirror/security/", "sid-security")
    shop = target("debian.sources:2", "http://other/x/", "stable", origin="Shop")
    wanted = ["contrib", "non-free"]
    assert host.lacking("\n".join([main, free, security, shop]), wanted) == (
        "Types: deb\nURIs: http://mirror/debian/\nSuites: bookworm\nComponents: contrib\n"
        "Signed-By: /usr/share/keyrings/debian.gpg\n\n"
        "Types: deb\nURIs: http://mirror/security/\nSuites: sid-security\n"
        "Components: contrib non-free\nSigned-By: /k.gpg\n"
    )
    whole = [main, *(main.replace("Component: main", f"Component: {name}") for name in wanted)]
    assert host.lacking("\n".join(whole), wanted) == ""
    assert host.signed_by("/no/such.list:1") == ""


# Recorded: what apt says of a repository, of Debian 12 and then of Debian 13.
MIRROR = "http://172.18.0.1:42013"
UNSIGNED = f"E: The repository '{MIRROR}  InRelease' is not signed.\n"
APT_SAYS = {
    "another key, 12": f"W: GPG error: {MIRROR}  InRelease: The following signatures couldn't be"
    " verified because the public key is not available: GOODSIG 788804A416EF6521\n" + UNSIGNED,
    "another key, 13": f"W: OpenPGP signature verification failed: {MIRROR}  InRelease: No good"
    " signature from required signer: 02182E60104FCDC26EAE1B8597A5D4CB8793F200\n" + UNSIGNED,
    "changed, 12": f"W: GPG error: {MIRROR}  InRelease: The following signatures were invalid:"
    " BADSIG 881F1CB715BA4359 stand-in <nobody@example.org>\n" + UNSIGNED,
    "changed, 13": f"W: OpenPGP signature verification failed: {MIRROR}  InRelease: Sub-process"
    " /usr/bin/sqv returned an error code (1), error message is: Verifying signature:"
    "            Message has been manipulated\n" + UNSIGNED,
    "no repository": f"E: The repository '{MIRROR}  Release' does not have a Release file.\n",
    "named twice": f"E: Conflicting values set for option Signed-By regarding source {MIRROR}/ /:"
    " /etc/apt/keyrings/x.asc,B76E != /usr/share/keyrings/debian-archive-keyring.gpg\n"
    "E: The list of sources could not be read.\n",
}


@pytest.mark.parametrize("case", APT_SAYS)
def test_what_apt_complains_of(decide, host, case):
    other = "W: Failed to fetch http://other/debian/InRelease  Temporary failure resolving\n"
    said = host.complaints(other + APT_SAYS[case], f"{MIRROR}/")
    assert "other" not in said and "  " not in said
    setting = "nvidia_apt_url: value http://mirror cannot be used on this host ("
    if APT_SAYS[case].endswith(UNSIGNED):
        setting = "nvidia_apt_key: value 02AB has not signed what lies at "
    (problem,) = decide(driver="nvidia", offered={}, apt_said={"nvidia_apt": said})["problems"]
    assert problem.startswith(setting) and f"({said}); fix: " in problem
    assert host.complaints(other, f"{MIRROR}/") == ""


OLD_KEY = ("3bf863cc.pub", "EB693B3035CD5710E231E123A4B469963BF863CC")
PLACES = {
    "debian 12": ("debian12", *OLD_KEY),
    "debian 13": ("debian13", "8793F200.pub", "02182E60104FCDC26EAE1B8597A5D4CB8793F200"),
    "ubuntu 22.04": ("ubuntu2204", *OLD_KEY),
    "ubuntu 24.04": ("ubuntu2404", *OLD_KEY),
}


@pytest.mark.parametrize("system", PLACES)
def test_where_nvidia_s_repository_of_a_system_lies(repo, system):
    """As NVIDIA publishes them, copied by hand: no machine of the tests reaches them."""
    loader, known = DataLoader(), {}
    for part in ("defaults", "vars"):
        path = str(repo / f"roles/nvidia/{part}/main.yml")
        known |= loader.load_from_file(path, trusted_as_template=True)
    name, version = system.split()
    known |= {
        "inspect_result": {"os": {"id": name, "version": version}},
        "nvidia_driver": "nvidia", "r1_manager": "compose",
    }  # fmt: skip

    def repository(**settings):
        templar = Templar(loader, variables=known | settings)
        return templar.template(known["__nvidia_repositories"])["nvidia_apt"]

    folder, file, key = PLACES[system]
    url = f"https://developer.download.nvidia.com/compute/cuda/repos/{folder}/x86_64/"
    found = repository()
    assert (found["url"], found["key_url"], found["key"]) == (url, url + file, key)
    found = repository(nvidia_apt_url="http://mirror", nvidia_apt_key="AB" * 20)
    assert found["key_url"] == f"http://mirror/{folder}/x86_64/{file}"
    assert found["key"] == "AB" * 20


def test_settings_that_are_refused_by_their_form(load_plugin):
    checks = load_plugin("roles/settings/action_plugins/check_settings.py")
    specs, _ = checks.load_roles(Path(__file__).resolve().parents[2] / "roles")
    for name, value, what in [
        ("nvidia_driver_branch", "newest", "is no branch of the driver"),
        ("nvidia_apt_key", "3bf863cc", "is no fingerprint"),
        ("nvidia_apt_key", "automatic", "is no fingerprint"),
        ("nvidia_toolkit_apt_key", "", "is no fingerprint"),
        ("nvidia_apt_url", "mirror", "is not a URL"),
        ("nvidia_driver", "nouveau", "is not one of its choices"),
    ]:
        assert checks.check_value(name, value, specs[name])[0] == what
        assert checks.check_value(name, specs[name]["default"], specs[name]) is None
    for good in ("auto", "580", "580.95", "580.95.05", 580):
        spec = specs["nvidia_driver_branch"]
        assert checks.check_value("nvidia_driver_branch", good, spec) is None


# The first and the last device of each run of a generation in pci.ids, with its chip.
CHIPS = """
06c0 GF100  0fa0 GK107  130b GK208  1340 GM108  1436 GM206  15c2 GP100  15ff GP100  1617 GM204
1725 GP100  174d GM108  17fd GM200  1b00 GP102  1d56 GP108  1d81 GV100  1df6 GV100  1e02 TU102
1ff9 TU117  2080 GA100  20ff GA100  2182 TU116  21d1 TU116  2200 GA102  223f GA102  2302 GH100
23f0 GH100  2414 GA103  25fb GA107  2681 AD102  28f8 AD107  2900 GB100  3340 GB202
"""
GENERATION = {
    "GF": "Kepler or older", "GK": "Kepler or older", "GM": "Maxwell or Pascal",
    "GP": "Maxwell or Pascal", "GV": "Volta", "TU": "Turing", "GA": "Ampere", "GH": "Hopper",
    "AD": "Ada Lovelace", "GB": "Blackwell",
}  # fmt: skip


def test_generations_by_pci_number(nvidia, rules):
    pairs = re.findall(r"(\w{4}) ([A-Z]{2})\d+", CHIPS)
    assert len(pairs) == 31
    for device, chip in pairs:
        (card,) = nvidia.read_cards(H100.replace("2330", device), rules)
        assert card["kind"]["name"] == GENERATION[chip], device


def test_cards_are_known_to_the_planner(repo, rules, load_plugin):
    table = load_plugin("roles/plan/module_utils/r1_planner/cards.py").CARDS
    assert set(rules["cards"].values()) <= set(table)
    assert sorted(rules["cards"]) == list(rules["cards"])


def test_the_recorded_h100_is_the_table_s(nvidia, rules):
    """nvidia-smi and lspci name one card by the same number."""
    gpu = ElementTree.fromstring((DATA / "nvidia-smi-h100.xml").read_text()).find("gpu")
    number = gpu.findtext("pci/pci_device_id")[:4].lower()
    (card,) = nvidia.read_cards(H100.replace("2330", number), rules)
    assert f"NVIDIA {card['name']}" == gpu.findtext("product_name")
    assert card["kind"]["name"] == gpu.findtext("product_architecture")


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"answers": True, "driver_version": "580.95.05"}, {}),
        (
            {"answers": True, "driver_version": "550.54.14"},
            {"vllm": "is CUDA 13 and needs driver 580 or newer, but the host has 550.54.14"},
        ),
        (
            {},
            {
                "vllm": "is CUDA 13 and needs driver 580 or newer, but nvidia_driver distribution"
                " gives 535.309.01"
            },
        ),
    ],
)
def test_engines_that_auto_leaves_out(decide, changes, refused):
    """Known before there is a plan, so that it is not made for them."""
    assert decide(engine="", **changes)["engines_refused"] == refused
