#!/usr/bin/python
"""Look at what an NVIDIA driver of this host would need, and at what is there of one."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
import urllib.request
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: nvidia_host
short_description: Look at the NVIDIA driver of a host without changing it
description:
  - Reads what is installed, built, loaded and held. With O(ask) it also asks apt what could be
    had, with lists of its own, in a folder that is gone afterwards.
options:
  kernel:
    description: Kernel that a module would be built for; empty is the running one.
    type: str
    default: ""
  packages:
    description: Packages of a driver.
    type: list
    elements: str
    required: true
  ask:
    description: Whether to ask apt; it takes as long as C(apt-get update).
    type: bool
    default: false
  pin:
    description: apt preferences by which this project holds its driver.
    type: path
    required: true
  components:
    description: Parts of the distribution's repository that are needed beside V(main).
    type: list
    elements: str
    default: []
  components_file:
    description: File that is to name them to apt.
    type: path
    default: ""
  repositories:
    description: >-
      Other repositories that are to be asked, by a name of the caller's: C({url, key, key_url,
      keyring, file}), the fingerprint of the key, where the key lies, and the files that are to
      hold the key and name the repository to apt. Neither need be there yet. A repository that
      the host's own files name is asked as they say.
    type: dict
    default: {}
  own:
    description: Files of this project's own sources, which apt is asked without.
    type: list
    elements: path
    default: []
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Look at the driver
  nvidia_host:
    packages: [nvidia-kernel-dkms, nvidia-smi]
    pin: /etc/apt/preferences.d/deepseek-r1-nvidia
    components: [contrib, non-free, non-free-firmware]
  register: nvidia_seen
"""

RETURN = r"""
answers:
  description: Whether nvidia-smi answers.
  type: bool
  returned: always
loaded:
  description: Version of the module that runs, empty without one.
  type: str
  returned: always
library:
  description: Version of libnvidia-ml.so.1, empty without it.
  type: str
  returned: always
kernel:
  description: Kernel that is looked at; C(running_kernel) is the running one.
  type: str
  returned: always
headers:
  description: Whether the headers of the kernel are there.
  type: bool
  returned: always
built:
  description: Version of the module that is there for the kernel, empty without one.
  type: str
  returned: always
booted_with_it:
  description: Whether the module was there already when the host booted.
  type: bool
  returned: always
secure_boot:
  description: Whether the firmware lets only signed modules in; C(key_enrolled), whether it
    knows the key of DKMS.
  type: bool
  returned: always
persistence:
  description: Whether the persistence daemon is installed.
  type: bool
  returned: always
toolkit:
  description: Whether the container toolkit is installed.
  type: bool
  returned: always
installed:
  description: Versions of those of O(packages), and of the kernel's, that are installed.
  type: dict
  returned: always
offered:
  description: Versions that apt offers of them, null where it was not asked.
  type: dict
  returned: always
sources:
  description: >-
    What has to be among apt's sources for that and is not, in deb822 form, by the file for it.
  type: dict
  returned: always
apt_said:
  description: What apt complained of, by the names in O(repositories).
  type: dict
  returned: always
pin:
  description: Text of the preferences, empty without them.
  type: str
  returned: always
"""

LIBRARY = "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"
VARIABLE = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
KEYS = ("/var/lib/dkms/mok.pub", "/var/lib/shim-signed/mok/MOK.der")
UNITS = ("/lib/systemd/system", "/usr/lib/systemd/system")
PERSISTENCE = "nvidia-persistenced.service"


def read(path):
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def say(*argv, **environment):
    """(exit status, all that a program said); one that is not there says nothing."""
    try:
        done = subprocess.run(
            [str(part) for part in argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", timeout=300, check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8", **environment},
        )  # fmt: skip
    except OSError:
        return 127, ""
    return done.returncode, done.stdout


def module_version(text):
    """The version in /proc/driver/nvidia/version, of either kind of module."""
    found = re.search(r"Kernel Module\s+(?:for \S+\s+)?(\d+\.[\d.]+)", text)
    return found.group(1) if found else ""


def library_version(path):
    found = re.search(r"\.so\.(\d+\.[\d.]+)$", os.path.realpath(path))
    return found.group(1) if found else ""


def secure_boot(said, variable):
    """Read `mokutil --sb-state`; where that is missing, the firmware's own variable."""
    if "SecureBoot" in said:
        return "SecureBoot enabled" in said
    return variable[-1:] == b"\x01"


def key_enrolled(said):
    """Read `mokutil --test-key`."""
    return "is already enrolled" in said


def trust():
    variable = Path(VARIABLE).read_bytes() if Path(VARIABLE).exists() else b""
    on = secure_boot(say("mokutil", "--sb-state")[1], variable)
    known = on and any(
        key_enrolled(say("mokutil", "--test-key", key)[1]) for key in KEYS if Path(key).exists()
    )
    return {"secure_boot": on, "key_enrolled": known}


def built_module(kernel):
    """The module that DKMS put among the kernel's; Debian's names tell the kind."""
    files = Path("/lib/modules", kernel, "updates/dkms").glob("nvidia*.ko*")
    pattern = re.compile(r"nvidia(-current(-open)?)?\.ko(\.\w+)?")
    return next((file for file in sorted(files) if pattern.fullmatch(file.name)), None)


def built(kernel):
    file = built_module(kernel)
    if file is None:
        return {"built": "", "booted_with_it": False}
    boot = re.search(r"^btime (\d+)", read("/proc/stat"), re.MULTILINE)
    version = say("modinfo", "-F", "version", file)[1].strip()
    early = bool(boot) and file.stat().st_mtime < int(boot.group(1))
    return {"built": version, "booted_with_it": early}


def installed(names):
    argv = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status} ${Version}\\n", *names]
    rows = (line.split() for line in say(*argv)[1].splitlines())
    return {row[0]: row[2] for row in rows if len(row) == 3 and row[1] == "installed"}


def versions(said):
    """Read `apt-cache madison`."""
    found = {}
    for line in said.splitlines():
        parts = [part.strip() for part in line.split(" | ")]
        if len(parts) == 3 and parts[1] not in found.get(parts[0], []):
            found.setdefault(parts[0], []).append(parts[1])
    return found


def signed_by(entry):
    """What a source says of its key, which must be said alike of all of one repository; `entry`
    is FILE:NUMBER, of a line or, in a deb822 file, of a stanza."""
    file, _, number = entry.rpartition(":")
    if file.endswith(".sources"):
        parts = [part for part in re.split(r"\n[ \t]*\n+", read(file).strip()) if part.strip()]
        pattern = r"^Signed-By:[ \t]*(.+(?:\n[ \t]+.*)*)"
    else:
        parts, pattern = read(file).splitlines(), r"\[.*?signed-by=([^\s\]]+)"
    if not number.isdigit() or int(number) > len(parts):
        return ""
    found = re.search(pattern, parts[int(number) - 1], re.MULTILINE | re.IGNORECASE)
    return found.group(1) if found else ""


def lacking(targets, components):
    """deb822 lines that add components to the distribution's own repositories; `targets` is what
    `apt-get indextargets` says, a block for each list."""
    have, repositories = set(), {}
    for block in targets.split("\n\n"):
        field = dict(re.findall(r"^([\w-]+): (.*)$", block, re.MULTILINE))
        place = field.get("Repo-URI", ""), field.get("Release", "")
        have.add((*place, field.get("Component")))
        own = field.get("Origin") in ("Debian", "Ubuntu") and field.get("Component") == "main"
        if own and field.get("Created-By") == "Packages":
            repositories[place] = signed_by(field.get("Sourcesentry", ""))
    text = []
    for (uri, suite), key in repositories.items():
        wanted = [name for name in components if (uri, suite, name) not in have]
        if wanted:
            lines = ["Types: deb", f"URIs: {uri}", f"Suites: {suite}",
                     f"Components: {' '.join(wanted)}"]  # fmt: skip
            text.append("\n".join([*lines, f"Signed-By: {key}"] if key else lines) + "\n")
    return "\n".join(text)


def complaints(said, url):
    """What `apt-get update` has against one repository."""
    place = url.rstrip("/")
    lines = [line for line in said.splitlines() if line[:3] in ("W: ", "E: ") and place in line]
    return " ".join(" ".join(dict.fromkeys(line[3:] for line in lines)).split())[:500]


def source(repository, keyring):
    return (
        f"Types: deb\nURIs: {repository['url']}\nSuites: /\n"
        f"Signed-By: {keyring} {repository['key']}\n"
    )


class Apt:
    """apt with the host's sources but `own`, and more, and with lists that are not the host's."""

    def __init__(self, folder, own):
        self.parts = folder / "sources"
        for name in ("sources", "lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True)
        for file in Path("/etc/apt/sources.list.d").glob("*"):
            if str(file) not in own:
                (self.parts / file.name).symlink_to(file)
        config = folder / "apt.conf"
        config.write_text(
            f'Dir::Etc::SourceParts "{self.parts}";\nDir::State::Lists "{folder}/lists";\n'
            f'Dir::Cache "{folder}/cache";\nAPT::Sandbox::User "root";\n'
        )
        self.config = str(config)

    def say(self, *argv):
        return say(*argv, APT_CONFIG=self.config)[1]

    def add(self, text):
        (self.parts / "wanted.sources").write_text(text)


def fetch(url, file):
    """Why a key cannot be had; empty when it lies in `file`."""
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            file.write_bytes(answer.read())
    except (OSError, ValueError) as error:
        return f"{url}: {error}"
    return ""


def offers(asked, names):
    """(versions by package, sources to add by file, complaints by repository): what apt could
    install here."""
    sources, trial, said = {}, [], {}
    with tempfile.TemporaryDirectory() as place:
        apt = Apt(Path(place), asked["own"])
        log = apt.say("apt-get", "-qq", "update")
        targets = apt.say("apt-get", "indextargets")
        if text := asked["components"] and lacking(targets, asked["components"]):
            sources[asked["components_file"]] = text
            trial.append(text)
        known = set(re.findall(r"^Repo-URI: (\S+)$", targets, re.MULTILINE))
        for name, one in asked["repositories"].items():
            if one["url"] in known:
                continue
            text = [sources[one["file"]]] if one["file"] in sources else []
            sources[one["file"]] = "\n".join([*text, source(one, one["keyring"])])
            key = Path(place, f"{name}.asc")
            said[name] = fetch(one["key_url"], key)
            if not said[name]:
                trial.append(source(one, key))
        if trial:
            apt.add("\n".join(trial))
            log += apt.say("apt-get", "-qq", "update")
        for name, one in asked["repositories"].items():
            said[name] = said.get(name) or complaints(log, one["url"])
        return versions(apt.say("apt-cache", "madison", *names)), sources, said


def main():
    module = AnsibleModule(
        argument_spec={
            "kernel": {"type": "str", "default": ""},
            "packages": {"type": "list", "elements": "str", "required": True},
            "ask": {"type": "bool", "default": False},
            "pin": {"type": "path", "required": True},
            "components": {"type": "list", "elements": "str", "default": []},
            "components_file": {"type": "path", "default": ""},
            "repositories": {"type": "dict", "default": {}},
            "own": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    asked, running = module.params, platform.release()
    kernel = asked["kernel"] or running
    flavour = re.sub(r"^[\d.]+(\+\w+)?(-\d[\w.~]*)?-", "", kernel)
    beside = [f"linux-headers-{kernel}", f"linux-headers-{flavour}", f"linux-image-{flavour}"]
    names = [*asked["packages"], *beside]
    seen = {
        "answers": say("nvidia-smi", "-L")[0] == 0,
        "loaded": module_version(read("/proc/driver/nvidia/version")),
        "library": library_version(LIBRARY),
        "kernel": kernel,
        "running_kernel": running,
        "headers": Path("/lib/modules", kernel, "build/Makefile").exists(),
        "persistence": any(Path(folder, PERSISTENCE).exists() for folder in UNITS),
        "toolkit": bool(shutil.which("nvidia-ctk")),
        "installed": installed(names),
        "pin": read(asked["pin"]),
        **built(kernel),
        **trust(),
    }
    offered, sources, said = offers(asked, names) if asked["ask"] else (None, {}, {})
    module.exit_json(changed=False, offered=offered, sources=sources, apt_said=said, **seen)


if __name__ == "__main__":
    main()
