"""Everything that speaks against a deploy, as sentences; documented in preflight_problems.yml."""

from __future__ import annotations

import re


def problem(name, value, what, fix) -> str:
    return f"{name}: value {value} {what}; fix: {fix}"


def numbers(version) -> tuple:
    return tuple(int(part) for part in str(version).split(".") if part.isdigit())


def subject(text) -> str:
    """The setting that a sentence is about."""
    return re.match(r"\w*", text).group()


def root_problems(seen, become_error) -> list[str]:
    if seen["root"]:
        return []
    user = seen["user"]
    last = (become_error.splitlines() or [""])[-1]
    reason = f" ({last.replace('Task failed: ', '')})" if last else ""
    return [
        f"no sudo: user {user} cannot become root{reason}; fix: connect as root, let {user} use"
        " sudo without a password, or pass --ask-become-pass"
    ]


def system_problems(seen, rules) -> list[str]:
    found = []
    system = seen["os"]
    if system.get("version") not in rules["systems"].get(system.get("id"), []):
        names = ", ".join(
            f"{name.title()} {version}"
            for name, versions in rules["systems"].items()
            for version in versions
        )
        found.append(
            problem(
                "operating system",
                repr(system.get("pretty", "unknown")),
                "is not supported",
                f"use a host with {names}",
            )
        )
    if seen["arch"] != rules["arch"]:
        found.append(
            problem(
                "processor",
                seen["arch"],
                "is not supported",
                f"use a host with an {rules['arch']} processor",
            )
        )
    if numbers(seen["python"]) < numbers(rules["python"]):
        found.append(
            problem(
                "python",
                seen["python"],
                "is too old",
                f"install Python {rules['python']} or newer on the host and name it in"
                " ansible_python_interpreter",
            )
        )
    return found


def engine_problems(seen, plan, rules) -> list[str]:
    """What the planned engine's program needs of the system and the processor."""
    engine = plan.get("engine")
    needs = rules["engines"].get(engine)
    if not needs or seen["arch"] != rules["arch"]:
        return []
    found = []
    if numbers(seen["glibc"]) < numbers(needs["glibc"]):
        found.append(
            problem(
                "glibc",
                seen["glibc"],
                f"is too old for engine {engine}",
                f"use a system with glibc {needs['glibc']}, or set engine to ollama",
            )
        )
    missing = [flag for flag in needs["cpu_flags"] if flag not in seen["cpu"]["flags"]]
    if missing:
        found.append(
            problem(
                "processor",
                repr(seen["cpu"]["model"]),
                f"lacks {', '.join(missing)}, which the program of engine {engine} uses",
                "set engine to ollama",
            )
        )
    return found


def port_problems(seen, ports) -> list[str]:
    found = []
    for name, port in ports.items():
        holder = seen["ports"].get(str(port))
        if not holder or holder["ours"]:
            continue
        if holder["pid"]:
            who = f"{holder['process']} (pid {holder['pid']}: {holder['cmdline']})"
        else:
            who = f"a process of user {holder['user']}"
        found.append(
            problem(name, port, f"is held by {who}", f"stop it, or set {name} to a free port")
        )
    return found


def state_problems(seen, data_path) -> list[str]:
    found = []
    if seen["disk"]["read_only"]:
        found.append(
            problem(
                "data_path",
                data_path,
                "lies on a read-only file system",
                "set data_path to a folder on a disk that can be written",
            )
        )
    return found + [
        problem(
            "host",
            repr(text),
            "stands in the way",
            "repair it (a driver update often needs a reboot), or say in plan_hardware what"
            " the host has",
        )
        for text in seen["problems"]
        if text.startswith(("GPUs", "memory"))
    ]


def preflight_problems(settings_problems, seen, plan, rules, wanted) -> list[str]:
    """Join all problems, each once."""
    found = list(settings_problems)
    named = {subject(text) for text in found}
    if seen:
        found += root_problems(seen, wanted["become_error"])
        found += system_problems(seen, rules)
        found += engine_problems(seen, plan, rules)
        found += port_problems(seen, wanted["ports"])
        found += state_problems(seen, wanted["data_path"])
    found += [text for text in plan.get("problems") or [] if subject(text) not in named]
    return list(dict.fromkeys(found))


def preflight_refusal(problems) -> str:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = [f"{number}. {text}" for number, text in enumerate(problems, 1)]
    return "\n".join([f"Refused, nothing was changed. {count}:", *lines])


class FilterModule:
    def filters(self):
        return {
            "preflight_problems": preflight_problems,
            "preflight_refusal": preflight_refusal,
        }
