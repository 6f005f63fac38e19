"""Every setting is a default with a comment, and is documented with the same value."""

import re
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (REPO / "roles").iterdir() if path.is_dir())

# The product's face: these names carry no role's prefix (see README.md).
PUBLIC = {
    "runtime", "engine", "model", "models", "precision", "goal", "images", "data_path",
    "max_model_len", "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization",
    "kv_cache_dtype", "enforce_eager", "tensor_parallel_size", "pipeline_parallel_size",
    "model_sources", "modelscope_endpoint", "huggingface_endpoint", "ollama_registry",
    "s3_endpoint", "s3_region",
    "model_fallback", "engine_port", "gateway_port", "plan_hardware", "api_keys", "rotate",
    "gpus", "bundle",
}  # fmt: skip


def load(role, file):
    path = REPO / "roles" / role / file
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {} if path.exists() else {}


def entries(role):
    return load(role, "meta/argument_specs.yml").get("argument_specs", {})


def documented(role):
    """Options of the entry points that have defaults: all but the required ones."""
    return {
        name: option
        for entry in entries(role).values()
        for name, option in (entry.get("options") or {}).items()
        if not option.get("required")
    }


def walk(options, path=""):
    for name, option in (options or {}).items():
        yield path + name, option
        yield from walk(option.get("options"), f"{path}{name}.")


@pytest.mark.parametrize("role", ROLES)
def test_documented_settings_are_the_defaults(role):
    specs = {name: option.get("default") for name, option in documented(role).items()}
    assert specs == load(role, "defaults/main.yml")


@pytest.mark.parametrize("role", ROLES)
def test_everything_is_described(role):
    assert entries(role), f"roles/{role}/meta/argument_specs.yml is missing"
    for entry in entries(role).values():
        assert entry.get("short_description")
        bare = [
            name for name, option in walk(entry.get("options")) if not option.get("description")
        ]
        assert bare == []
        untyped = [name for name, option in walk(entry.get("options")) if "type" not in option]
        assert untyped == []


@pytest.mark.parametrize("role", ROLES)
def test_every_default_is_commented(role):
    path = REPO / "roles" / role / "defaults/main.yml"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    bare = []
    for number, line in enumerate(lines):
        before = lines[number - 1] if number else ""
        # Settings of one kind may share a comment: they follow each other without a gap.
        if re.match(r"\w+:", line) and not re.match(r"#|\w+:|[ \-]", before):
            bare.append(line)
    assert bare == []


@pytest.mark.parametrize("role", ROLES)
def test_settings_carry_their_roles_name(role):
    foreign = {
        name for name in documented(role) if not name.startswith(f"{role}_") and name not in PUBLIC
    }
    assert foreign == set()


def test_public_settings_are_the_role_settings_own():
    own = {name for name in documented("settings") if not name.startswith("settings_")}
    assert own == PUBLIC


def test_each_setting_has_one_owner():
    owners = {}
    for role in ROLES:
        for name in documented(role):
            owners.setdefault(name, []).append(role)
    assert {name: roles for name, roles in owners.items() if len(roles) > 1} == {}


def test_choices_hold_the_default():
    for role in ROLES:
        for name, option in documented(role).items():
            if "choices" in option:
                values = option["default"]
                for value in values if isinstance(values, list) else [values]:
                    assert value in option["choices"], name
