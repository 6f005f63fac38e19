"""The lock file: what the hubs held when playbooks/lock.yml looked, so that no name moves.

{MODEL: {PRECISION: {HUB: {repository, resolved, revision, files: [{path, bytes, sha256}]}}}}
An entry with resolved: false has no files: the host takes what it finds at first use, and holds
that from then on.
"""

from __future__ import annotations

from .catalogue import one_hub_each

LOCKED = ("modelscope", "huggingface")


def split(catalogue):
    """The catalogue with one source for each hub."""
    return {
        name: {
            **entry,
            "precisions": {key: one_hub_each(data) for key, data in entry["precisions"].items()},
        }
        for name, entry in catalogue.items()
    }


def lockable(catalogue):
    """Yield (model, precision, source) of all that the catalogue itself does not pin."""
    for name, entry in split(catalogue).items():
        for precision, data in entry["precisions"].items():
            for source in data["sources"]:
                if source["source"] in LOCKED and not pinned(source):
                    yield name, precision, source


def pinned(source):
    files = source.get("files") or []
    return bool(files) and all(file.get("sha256") for file in files)


def entry_of(lock, name, precision, source):
    """What the lock says of a source; nothing where it speaks of another repository."""
    found = lock.get(name, {}).get(precision, {}).get(source["source"], {})
    return found if found.get("repository") == source["repository"] else {}


def apply(catalogue, lock):
    """The catalogue with the revisions and files of the lock."""
    locked = split(catalogue)
    for name, precision, source in lockable(catalogue):
        found = entry_of(lock, name, precision, source)
        if found.get("resolved"):
            sources = locked[name]["precisions"][precision]["sources"]
            sources[sources.index(source)] |= {key: found[key] for key in ("revision", "files")}
    return locked


def renew(catalogue, lock, look):
    """Return (lock, problems): each source as look(source) finds it now.

    What cannot be looked at keeps what was known of it; look returns ({revision, files}, error).
    """
    renewed, problems = {}, []
    for name, precision, source in lockable(catalogue):
        found, error = look(source)
        if found:
            entry = {"repository": source["repository"], "resolved": True, **found}
        else:
            problems.append(f"{name} {precision} from {source['source']}: {error}")
            entry = entry_of(lock, name, precision, source)
            entry = entry or {"repository": source["repository"], "resolved": False}
        renewed.setdefault(name, {}).setdefault(precision, {})[source["source"]] = entry
    return renewed, problems
