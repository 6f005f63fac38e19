"""What the fragments in the folder compose/ need; documented in compose_services.yml."""

from __future__ import annotations

import json


def compose_text(value) -> str:
    """A value as JSON, which is YAML too, safe from compose's own variables."""
    return json.dumps(value, ensure_ascii=False).replace("$", "$$")


def pinned(images, name) -> str:
    """The image as compose takes it, and as a comment the name it was pulled by."""
    return f"{images[name]} # {name}"


def compose_services(services, uids, images, open_files) -> dict[str, dict]:
    """Service descriptions by name, their values as compose.yml takes them."""
    found = {}
    for service in services:
        ids = uids.get(service["user"], {"uid": 0, "gid": 0})
        found[service["name"]] = service | {
            "image": images if isinstance(images, str) else pinned(images, service["image"]),
            "uid": ids["uid"],
            "gid": ids["gid"],
            "command": compose_text([str(part) for part in service["command"]]),
            "program": service["command"][0],
            "environment": compose_text(
                {name: str(value) for name, value in service.get("environment", {}).items()}
            ),
            "ready": compose_text(["CMD", *(str(part) for part in service["ready"])]),
            "open_files": min(int(service["open_files"]), int(open_files or service["open_files"])),
        }
    return found


def compose_uids(accounts) -> dict[str, dict]:
    """What the module getent found, as {user: {uid, gid}}."""
    return {name: {"uid": int(line[1]), "gid": int(line[2])} for name, line in accounts.items()}


def compose_gpus(devices, cdi) -> str:
    """The cards that the engine gets, all where none is named.

    By CDI where Docker knows them all by it: a card that Docker's own driver for NVIDIA puts into a
    container is lost to it when systemd is told to reload.
    """
    names = [f"nvidia.com/gpu={device}" for device in devices or ["all"]]
    if set(names) <= set(cdi):
        request = {"driver": "cdi", "device_ids": names}
    else:
        request = {"driver": "nvidia", **({"device_ids": devices} if devices else {"count": "all"})}
    return compose_text({**request, "capabilities": ["gpu"]})


class FilterModule:
    def filters(self):
        return {
            "compose_gpus": compose_gpus,
            "compose_services": compose_services,
            "compose_text": compose_text,
            "compose_uids": compose_uids,
        }
