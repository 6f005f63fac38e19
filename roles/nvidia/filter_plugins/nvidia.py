"""What to do about the NVIDIA driver of a host; documented in nvidia_decision.yml.

Everything here is computed from what was seen: no host, no program, no network is asked.
"""

from __future__ import annotations

import re

CARD = re.compile(r"^(\S+) .*\[(030[02])\]: .*\[10de:([0-9a-f]{4})\]")
IN_USE = re.compile(r"^\s+Kernel driver in use: (\S+)")
TOOLKIT = "nvidia-container-toolkit"
INSTEAD = ", or set nvidia_driver to none to serve from the CPU"


def problem(name, value, what, fix, instead=INSTEAD) -> str:
    return f"{name}: value {value} {what}; fix: {fix}{instead}"


def numbers(version) -> tuple:
    return tuple(int(part) for part in re.findall(r"\d+", str(version)))


def upstream(version) -> str:
    """535.309.01 of a package's version 1:535.309.01-0+deb12u1."""
    return version.rpartition(":")[2].partition("-")[0]


def branch(version) -> int:
    return int(version.partition(".")[0])


def read_cards(text, rules) -> list[dict]:
    """Cards of a text as `lspci -nnk` writes it, each with its generation's rules."""
    cards = []
    for line in text.splitlines():
        if found := CARD.match(line):
            device = found.group(3)
            kinds = [one for one in rules["architectures"] if one["from"] <= device]
            card = {"slot": found.group(1), "device": device, "kind": kinds[-1], "in_use": ""}
            cards.append(card | {"name": rules["cards"].get(device)})
        elif line[:1].strip():
            cards.append({})  # another device: what follows is not a card's
        elif cards and cards[-1] and (found := IN_USE.match(line)):
            cards[-1]["in_use"] = found.group(1)
    return [card for card in cards if card]


def call(card) -> str:
    return f"{card['name'] or 'card'} [10de:{card['device']}] ({card['kind']['name']})"


def package_names(wanted, rules) -> dict[str, list[str]]:
    """Packages by kind: C(open), C(proprietary) and, of a version of their own, C(beside)."""
    found = rules["packages"].get(wanted["driver"], {}).get(wanted["system"])
    if not found:
        return {}
    number = rules["branch"] if wanted["branch"] == "auto" else branch(wanted["branch"])
    return {kind: [name.format(branch=number) for name in names] for kind, names in found.items()}


def headers_name(kernel) -> str:
    return f"linux-headers-{kernel}"


def kernel_flavour(kernel) -> str:
    """cloud-amd64 of 6.1.0-56-cloud-amd64: the newest kernel is the package linux-image-THAT."""
    found = re.match(r"[\d.]+(?:\+\w+)?(?:-\d[\w.~]*)?-([a-z][\w-]*)$", kernel)
    return found.group(1) if found else ""


def pinned(text) -> tuple[str, str]:
    """(setting nvidia_driver, version) that this project's apt preferences hold."""
    held = re.search(r"^Pin: version (\S+)-\*$", text or "", re.MULTILINE)
    whose = re.search(r"^# nvidia_driver: (\w+)$", text or "", re.MULTILINE)
    return (whose.group(1) if whose else "", held.group(1) if held else "")


def left_alone(seen, wanted, cards, rules) -> str:
    """Why nothing is done on a host; empty where something is."""
    if wanted["driver"] not in rules["packages"]:
        return f"nvidia_driver is {wanted['driver']}"
    if not cards:
        return "no NVIDIA card"
    if wanted["container"]:
        return "the host is a container: its driver is that of the machine around it"
    free = [card for card in cards if card["in_use"] != "vfio-pci"]
    if not free:
        return "its cards are given to virtual machines"
    if all(card["kind"]["modules"] == "none" for card in free):
        return f"{call(free[0])} is too old for every engine"
    if not package_names(wanted, rules):
        return f"system {wanted['system']} is not known here"
    if "kernel" in seen and seen["answers"] and not seen["pin"]:
        return "a driver answers, and it is not of this project"
    return ""


def allowed(card, modules, number) -> bool:
    kind = card["kind"]
    if not kind.get("first", 0) <= number <= kind.get("last", number):
        return False
    return kind["modules"] in ("either", modules)


def matches(version, wish) -> bool:
    return wish == "auto" or f"{version}.".startswith(f"{wish}.")


def common(offered, names) -> set[str]:
    """Versions that every one of the packages has: module and libraries must be of one."""
    sets = [{upstream(version) for version in offered.get(name, [])} for name in names]
    return set.intersection(*sets) if sets else set()


def choose(offered, wanted, names, cards, rules) -> tuple[str, str]:
    """(kind of modules, version): the newest that is offered and that all cards can use."""
    found = []
    for modules in ("open", "proprietary"):
        for version in common(offered, names[modules]):
            number = branch(version)
            fits = matches(version, wanted["branch"])
            if fits and all(allowed(card, modules, number) for card in cards):
                preferred = (modules == "open") == (number >= rules["open_from"])
                found.append((numbers(version), preferred, modules, version))
    return max(found)[2:] if found else ("", "")


def repository_problem(name, packages, seen, wanted, instead=INSTEAD) -> str:
    """Why a repository of NVIDIA's gives no packages: its signature, or whatever apt says."""
    one, said = wanted["repositories"][name], seen["apt_said"].get(name, "")
    if re.search(r"signed|signature", said):
        what = f"has not signed what lies at {one['url']} ({said})"
        fix = (
            "give the fingerprint of its key as its owner publishes it; where that is right, the"
            f" mirror was changed: set {name}_url to another one"
        )
        return problem(f"{name}_key", one["key"], what, fix, instead)
    what = f"cannot be used on this host ({said})"
    if not said:
        what = f"has none of these packages at {one['url']}: {', '.join(packages)}"
    fix = f"let the host reach it, or name a mirror of it, with its key in {name}_key"
    return problem(f"{name}_url", one["set"], what, fix, instead)


def no_choice(seen, wanted, names, cards) -> str:
    """Why no offered version will do."""
    offered, wish = seen["offered"], wanted["branch"]
    of_kind = {modules: common(offered, names[modules]) for modules in ("open", "proprietary")}
    versions = sorted(set.union(*of_kind.values()), key=numbers)
    if not versions:
        packages = dict.fromkeys([*names["open"], *names["proprietary"]])
        if wanted["driver"] == "nvidia":
            return repository_problem("nvidia_apt", packages, seen, wanted)
        what = f"finds no whole driver in its apt source ({', '.join(packages)})"
        fix = "let apt-get update work on the host"
        if wish != "auto" and any(str(branch(wish)) in name for name in packages):
            fix = f"give another one, or auto, or {fix}"
            return problem("nvidia_driver_branch", wish, what, fix)
        return problem("nvidia_driver", wanted["driver"], what, fix)
    told = ", ".join(versions)
    versions = [version for version in versions if matches(version, wish)]
    if not versions:
        held = next((card for card in cards if branch(wish) > card["kind"].get("last", 9999)), None)
        if held is None:
            what = f"is not offered by nvidia_driver {wanted['driver']}, which has {told}"
            return problem("nvidia_driver_branch", wish, what, "give one of these, or auto")
        versions = [wish]
    other = "set nvidia_driver to distribution"
    if wish != "auto":
        other = "set nvidia_driver_branch to auto"
    elif wanted["driver"] == "distribution":
        other = "set nvidia_driver to nvidia"
    for card in cards:
        first, last = card["kind"].get("first", 0), card["kind"].get("last")
        if last and all(branch(version) > last for version in versions):
            what = f"has no driver for {call(card)}: the last branch that has is {last}"
            if wish != "auto":
                fix = f"set nvidia_driver_branch to {last}, or to auto"
                return problem("nvidia_driver_branch", wish, what, fix)
            return problem("nvidia_driver", wanted["driver"], what, other)
        if all(branch(version) < first for version in versions):
            what = f"offers {told}, but {call(card)} needs branch {first} or newer"
            return problem("nvidia_driver", wanted["driver"], what, other)
    names_of_cards = ", ".join(call(card) for card in cards)
    what = f"offers {told}, and none of them has modules that fit all of: {names_of_cards}"
    return problem("nvidia_driver", wanted["driver"], what, "take one of the cards out")


def engines_refused(version, ours, wanted, rules) -> dict:
    """{engine: what it lacks} of those whose CUDA is too new for the driver."""
    has = f"nvidia_driver {wanted['driver']} gives {version}" if ours else f"the host has {version}"
    return {
        engine: f"is CUDA {need['cuda']} and needs driver {need['driver']} or newer, but {has}"
        for engine, need in rules["engines"].items()
        if version and branch(version) < need["driver"]
    }


def engine_problem(refused, version, ours, wanted, rules) -> list[str]:
    """What speaks against the planned engine, which may be among the refused ones."""
    engine = wanted["engine"]
    if engine not in refused:
        return []
    fixes = []
    if not ours:
        fixes.append(f"bring driver {rules['engines'][engine]['driver']} or newer to the host")
    elif wanted["driver"] != "nvidia" or wanted["branch"] != "auto":
        fixes.append("set nvidia_driver to nvidia with nvidia_driver_branch auto")
    if "ollama" not in refused:
        fixes.append("set engine to ollama")
    return [problem("engine", engine, refused[engine], ", or ".join(fixes), "")]


def toolkit_problems(seen, wanted) -> list[str]:
    """Containers need the container toolkit, which only its own repository has."""
    if not lacks_toolkit(seen, wanted) or seen["offered"].get(TOOLKIT):
        return []
    instead = ", or set runtime to native"
    return [repository_problem("nvidia_toolkit_apt", [TOOLKIT], seen, wanted, instead)]


def lacks_toolkit(seen, wanted) -> bool:
    return wanted["needs_toolkit"] and not seen["toolkit"]


def trust_problems(seen) -> list[str]:
    if not seen["secure_boot"] or seen["key_enrolled"]:
        return []
    return [
        problem(
            "Secure Boot",
            "enabled",
            "lets the kernel load no module that is built here, because the key of DKMS is not"
            " enrolled",
            "on the host install dkms and mokutil, make the key (dkms generate_mok; on Ubuntu"
            " update-secureboot-policy --new-key), mokutil --import it, reboot and confirm at the"
            " console; or switch Secure Boot off in the firmware",
        )
    ]


def headers_problems(seen) -> list[str]:
    name = headers_name(seen["kernel"])
    if seen["headers"] or seen["offered"].get(name):
        return []
    return [
        problem(
            "kernel",
            seen["kernel"],
            f"has no headers to build the driver's module with: {name} is neither installed nor"
            " offered by apt",
            "bring the kernel up to date (apt-get dist-upgrade) and reboot, or install its headers",
        )
    ]


def nouveau_problems(cards, wanted) -> list[str]:
    if wanted["reboot_allowed"] or not any(card["in_use"] == "nouveau" for card in cards):
        return []
    return [
        problem(
            "nvidia_reboot_allowed",
            "false",
            "and the driver nouveau has the card, which only a reboot takes from it",
            "set nvidia_reboot_allowed to true, which blacklists nouveau and reboots the host once;"
            " or put 'blacklist nouveau' into a file in /etc/modprobe.d, update-initramfs -u and"
            " reboot yourself",
        )
    ]


def older_problems(have, names, version, wanted) -> list[str]:
    """apt goes back to an older version only where packages may be changed."""
    newer = [have[name] for name in names if numbers(have.get(name, 0)) > numbers(version)]
    if not newer or wanted["package_changes"]:
        return []
    name = "nvidia_driver" if wanted["branch"] == "auto" else "nvidia_driver_branch"
    value = wanted["driver" if wanted["branch"] == "auto" else "branch"]
    what = f"is driver {version}, older than {newer[0]}, which is installed"
    return [problem(name, value, what, "set host_package_changes to true to allow it")]


def unknown_problems(cards, wanted) -> list[str]:
    """A plan is made before a driver can tell what the card is."""
    return [
        problem(
            "plan_hardware",
            "{}",
            f"says nothing of {call(card)}, which the planner does not know",
            "describe the host there: {gpus: [{name, memory_mib, compute_capability}], ram_mib}",
        )
        for card in cards
        if not card["name"] and not wanted["plan_hardware"]
    ]


def restart(seen, cards, wanted) -> tuple[bool, str, str]:
    """(whether to load the module, why a reboot is needed, why a reboot is no help)."""
    loaded, library = seen["loaded"], seen["library"]
    if seen["answers"]:
        return False, "", ""
    if loaded and library and loaded != library:
        return False, f"module {loaded} runs, the libraries are {library}", ""
    if loaded:
        return False, "", f"module {loaded} is loaded"
    if seen["kernel"] != seen["running_kernel"]:
        return False, f"{seen['running_kernel']} runs, the module is for {seen['kernel']}", ""
    if any(card["in_use"] == "nouveau" for card in cards):
        return False, "nouveau has the card", ""
    if not wanted["load_tried"]:
        return True, "", ""
    if seen["booted_with_it"]:
        return False, "", "the host has booted with it"
    return False, "the module does not load into the running system", ""


def nvidia_decision(seen, wanted, rules) -> dict:
    """Return what is to be done, why, and what speaks against it.

    seen: the cards as `lspci -nnk` writes them (pci), whether a driver answers and its version,
    and what the module nvidia_host found, once it has looked. wanted: settings, and what else is
    known of the host. rules: the tables of vars/main.yml.

    The steps follow from the state alone, so the same call before and after each of them says
    what is left, also after a run that was cut off.
    """
    cards = read_cards(seen["pci"], rules)
    decision = {
        "looks": False, "asks": False, "acts": False, "modules": "", "version": "",
        "packages": [], "blacklist": False, "build": False, "load": False, "reboot": "",
        "gpus": [], "engines_refused": {}, "problems": [], "reasons": [],
    }  # fmt: skip
    why = left_alone(seen, wanted, cards, rules)
    if why:
        version = seen["driver_version"] if seen["answers"] else ""
        decision["engines_refused"] = engines_refused(version, False, wanted, rules)
        fit = engine_problem(decision["engines_refused"], version, False, wanted, rules)
        return decision | {"problems": fit, "reasons": [f"NVIDIA driver: {why}"]}
    if "kernel" not in seen:
        return decision | {"looks": True}
    decision["acts"] = True
    cards = [card for card in cards
             if card["in_use"] != "vfio-pci" and card["kind"]["modules"] != "none"]  # fmt: skip
    if not seen["answers"]:
        decision["gpus"] = [{"name": f"NVIDIA {card['name']}"} for card in cards if card["name"]]
    if not seen["pin"] and (seen["library"] or seen["loaded"]):
        return decision | foreign_driver(seen, cards, wanted)

    names, there = package_names(wanted, rules), installed(seen, wanted, rules)
    if seen["offered"] is None and (
        not there or not seen["headers"] or lacks_toolkit(seen, wanted)
    ):
        return decision | {"asks": True}
    modules, version = there or choose(seen["offered"], wanted, names, cards, rules)
    if not version:
        decision["problems"] = [no_choice(seen, wanted, names, cards)]
        return decision
    decision |= {"modules": modules, "version": version}
    decision["reasons"] = [
        f"NVIDIA driver: {version} of {wanted['driver']} with {modules} modules for "
        + ", ".join(call(card) for card in cards)
    ]
    have = {name: upstream(text) for name, text in seen["installed"].items()}
    missing = [f"{name}={version}-*" for name in names[modules] if have.get(name) != version]
    missing += [name for name in names["beside"] if name not in have]
    if not seen["headers"]:
        missing.append(headers_name(seen["kernel"]))
    flavour = kernel_flavour(seen["kernel"])
    if f"linux-image-{flavour}" in have and f"linux-headers-{flavour}" not in have:
        missing.append(f"linux-headers-{flavour}")  # those of later kernels, too
    decision["engines_refused"] = engines_refused(version, True, wanted, rules)
    fit = [
        *engine_problem(decision["engines_refused"], version, True, wanted, rules),
        *toolkit_problems(seen, wanted),
    ]
    if seen["answers"] and not missing:
        return decision | {"problems": fit}
    decision["packages"] = missing
    decision["blacklist"] = any(card["in_use"] == "nouveau" for card in cards)
    decision["problems"] = [
        *trust_problems(seen), *headers_problems(seen), *nouveau_problems(cards, wanted),
        *older_problems(have, names[modules], version, wanted), *unknown_problems(cards, wanted),
        *fit,
    ]  # fmt: skip
    if missing or decision["problems"]:
        return decision
    if seen["built"] != version:
        return decision | {"build": True}
    return decision | settle(restart(seen, cards, wanted), wanted)


def installed(seen, wanted, rules) -> tuple[str, str] | None:
    """(kind of modules, version) that is there already and does what the settings want."""
    whose, version = pinned(seen["pin"])
    if whose != wanted["driver"] or not version or not matches(version, wanted["branch"]):
        return None
    names = package_names(wanted, rules)
    have = {name: upstream(text) for name, text in seen["installed"].items()}
    for modules in ("open", "proprietary"):
        if all(have.get(name) == version for name in names[modules]):
            return modules, version
    return None


def foreign_driver(seen, cards, wanted) -> dict:
    """A driver of somebody else's that does not answer is not replaced; a reboot may mend it."""
    loads, reboot, _ = restart({**seen, "kernel": seen["running_kernel"]}, cards, wanted)
    if reboot and not loads and seen["loaded"]:
        return settle((False, reboot, ""), wanted)
    version = seen["library"] or seen["loaded"]
    what = f"finds driver {version} of another source, which does not answer"
    fix = "repair it, or remove it (apt-get purge) and let this project install one"
    return {"problems": [problem("nvidia_driver", wanted["driver"], what, fix)]}


def settle(needs, wanted) -> dict:
    """Load, reboot, or say what to do."""
    load, reboot, hopeless = needs
    if hopeless:
        what = f"is installed and does not answer, though {hopeless}"
        fix = "read why on the host: dmesg | grep -iE 'nvrm|nvidia'"
        return {"problems": [problem("nvidia_driver", wanted["driver"], what, fix)]}
    if reboot and not wanted["reboot_allowed"]:
        what = f"but a reboot is needed: {reboot}"
        fix = "reboot the host and deploy again, or set nvidia_reboot_allowed to true"
        return {"problems": [problem("nvidia_reboot_allowed", "false", what, fix)]}
    return {"load": load, "reboot": reboot}


def nvidia_candidates(wanted, rules) -> list[str]:
    """Every package of a driver that a decision may speak of."""
    names = [name for kind in package_names(wanted, rules).values() for name in kind]
    return sorted({*names, TOOLKIT})


class FilterModule:
    def filters(self):
        return {"nvidia_decision": nvidia_decision, "nvidia_candidates": nvidia_candidates}
