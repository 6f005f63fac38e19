"""Test hosts that outlive the process that made them, for work by hand: one of each kind."""

import hashlib
from pathlib import Path

from . import image, keys, remote
from .machine import LABEL
from .shell import CACHE, run, step

INVENTORY = CACHE / "inventory.yml"
KIND = f"{LABEL}.kept"
STATE = f"{LABEL}.made-of"


def get(recipe: image.Recipe) -> remote.Remote:
    """The running host of this recipe, or a new one where it is missing or out of date."""
    keys.ensure()
    state = _state(recipe)
    if found := _running(recipe, f"{STATE}={state}"):
        return found
    for name in _names(f"{KIND}={_kind(recipe)}", stopped=True):
        run("docker", "rm", "--force", "--volumes", name)
    with step(f"{recipe.name} up"):
        labels = ("--label", f"{KIND}={_kind(recipe)}", "--label", f"{STATE}={state}")
        return remote.Remote(recipe, *labels)


def write_inventory() -> dict[str, remote.Remote]:
    """Write the inventory of the hosts that run, and return them by name."""
    found = {name: _running(recipe) for name, recipe in image.REMOTE.items()}
    hosts = {name: host for name, host in found.items() if host}
    INVENTORY.write_text(remote.inventory(hosts, model="tiny-r1"))
    return hosts


def _running(recipe: image.Recipe, *labels: str) -> remote.Remote | None:
    names = _names(f"{KIND}={_kind(recipe)}", *labels)
    return remote.Remote.found(names[0], recipe) if names else None


def _names(*labels: str, stopped: bool = False) -> list[str]:
    filters = [f"--filter=label={one}" for one in labels]
    return run("docker", "ps", f"--all={str(stopped).lower()}", *filters,
               "--format", "{{.Names}}").split()  # fmt: skip


def _kind(recipe: image.Recipe) -> str:
    return f"{recipe.name}@{CACHE}"  # each clone has its own


def _state(recipe: image.Recipe) -> str:
    parts = [recipe.tag, repr(recipe), keys.public(keys.HOST), keys.public(keys.CLIENT)]
    parts.append(Path(remote.__file__).read_text())
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:12]
