"""Everything that speaks against a deploy, as sentences; documented in preflight_problems.yml."""

from __future__ import annotations

import ipaddress
import re

SERVERS = re.compile(r"nginx|openresty|redis|valkey|ollama")


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


def holder_name(holder) -> str:
    if holder.get("container"):
        return f"container {holder['container']}"
    if holder["pid"]:
        return f"{holder['process']} (pid {holder['pid']}: {holder['cmdline']})"
    return f"a process of user {holder['user']}"


def beside(name, holder) -> str:
    """How to live with what holds a port."""
    program = holder["process"]
    if name == "gateway_port" and program in ("nginx", "openresty"):
        return (
            "set gateway_port to a free port and let your nginx pass to it"
            " (proxy_pass http://127.0.0.1:PORT; proxy_buffering off;), or stop it"
        )
    if name == "engine_port" and program == "ollama":
        return "set ollama_adopt to true to serve with it, or set engine_port to a free port"
    return f"stop it, or set {name} to a free port"


def port_problems(seen, ports) -> list[str]:
    return [
        problem(name, port, f"is held by {holder_name(holder)}", beside(name, holder))
        for name, port in ports.items()
        if (holder := seen["ports"].get(str(port))) and not holder["ours"]
    ]


def ollama_problems(seen, port, rules) -> list[str]:
    """Whether the Ollama that is to be adopted can serve."""
    found, holder = seen["adopted"]["ollama"], seen["ports"].get(str(port))

    def refuse(what, fix):
        return [problem("ollama_adopt", "true", what, fix + ", or set ollama_adopt to false")]

    if not holder:
        return refuse(
            f"finds nothing on engine_port {port}",
            "start your Ollama, and set engine_port to its port, mostly 11434",
        )
    if holder["ours"]:
        return refuse(
            f"finds this project's own service on engine_port {port}",
            "set engine_port to the port of your Ollama, mostly 11434",
        )
    if found["error"]:
        return refuse(
            f"finds {holder_name(holder)} on engine_port {port}: {found['error']}",
            "set engine_port to the port of your Ollama, mostly 11434",
        )
    if numbers(found["version"]) < numbers(rules["ollama"]):
        return refuse(
            f"finds Ollama {found['version']}, {rules['ollama']} or newer is needed", "update it"
        )
    if not all(ipaddress.ip_address(address).is_loopback for address in holder["addresses"]):
        return refuse(
            f"finds an Ollama that other machines reach at {', '.join(holder['addresses'])}, past"
            " the gateway's keys",
            f"set OLLAMA_HOST=127.0.0.1:{port} in its environment",
        )
    return []


def redis_problems(seen, address) -> list[str]:
    error = seen["adopted"]["redis"]["error"]
    if not error:
        return []
    fix = "give the address of a Redis that answers without a password, or auto for an own one"
    if "may not open" in error:
        fix = "set unixsocketperm 777 in its configuration, give its TCP address instead, or auto"
    return [problem("gateway_redis", repr(address), f"cannot be used: {error}", fix)]


def package_problems(seen, runtime) -> list[str]:
    """What apt would do to packages of others; a newer library of the same source is no harm."""
    found, instead = [], "" if runtime == "compose" else ", or set runtime to compose"
    harm = [
        f"{one['name']} {one['old']} would be {one['action']}"
        + (f" to {one['new']}" if one["new"] else "")
        for one in seen["packages_disturbed"]
        if one["action"] != "upgraded" or SERVERS.search(one["name"])
    ]
    if harm:
        found.append(
            problem(
                "host_package_changes",
                "false",
                f"forbids what apt would do: {'; '.join(harm)}",
                "bring these packages up to date yourself, set host_package_changes to true to"
                f" allow it{instead}",
            )
        )
    if seen["packages_conflict"]:
        found.append(
            problem(
                "packages",
                repr("; ".join(seen["packages_conflict"])),
                "keeps the distribution's packages from being installed beside what is there",
                f"remove what comes from another source{instead}",
            )
        )
    return found


def neighbours(seen, wanted) -> list[str]:
    """Servers of the host that are not ours, a sentence each."""
    adopted = {str(wanted["adopt_ollama"]), str(wanted["adopt_redis"]).rpartition(":")[2]}
    found = []
    for one in seen.get("foreign") or []:
        ports = [str(port) for port in one["ports"]]
        listens = "port " + " ".join(ports) if ports else None
        where = ", ".join(filter(None, [f"pid {one['pid']}", one["unit"], listens]))
        fate = "it serves, as set" if adopted & set(ports) else "it is left alone"
        found.append(f"{one['name']} ({where}) runs on this host; {fate}")
    return found


def state_problems(seen, data_path, runtime, driver_told) -> list[str]:
    found = []
    unread = ("memory",) if driver_told else ("memory", "GPUs")
    closed = seen["disk"]["closed"]
    if closed and runtime != "compose":
        found.append(
            problem(
                "data_path",
                data_path,
                f"lies below {closed}, which the users of the services may not enter",
                f"set data_path to a folder that all may reach, or chmod o+x {closed}",
            )
        )
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
        if text.startswith(unread)
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
        if wanted["adopt_ollama"] and "ollama_adopt" not in named:
            found += ollama_problems(seen, wanted["adopt_ollama"], rules)
        if wanted["adopt_redis"] and "gateway_redis" not in named:
            found += redis_problems(seen, wanted["adopt_redis"])
        if not wanted["package_changes"]:
            found += package_problems(seen, wanted["runtime"])
        told = wanted["driver_told"]
        found += state_problems(seen, wanted["data_path"], wanted["runtime"], told)
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
            "preflight_neighbours": neighbours,
        }
