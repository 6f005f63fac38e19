"""The workflow for GitHub: what it may do, and that what it calls is there."""

import re

import pytest
import yaml


@pytest.fixture(scope="module")
def text(repo):
    return (repo / ".github/workflows/test.yml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def workflow(text):
    return yaml.safe_load(text)


def test_actions_are_pinned_by_commit(text):
    used = re.findall(r"uses: (\S+)(.*)", text)
    assert used
    assert [one for one in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", one[0])] == []
    assert [one for one in used if not re.fullmatch(r" # v\d+\.\d+\.\d+", one[1])] == []


def test_it_may_only_read_and_ends_by_itself(workflow):
    assert workflow["permissions"] == {"contents": "read"}
    assert all(0 < job["timeout-minutes"] <= 120 for job in workflow["jobs"].values())
    assert not [job for job in workflow["jobs"].values() if "permissions" in job]


def test_inputs_reach_the_shell_by_the_environment_alone(workflow):
    """What is put into a script as text could be a command of its own."""
    scripts = [step["run"] for job in workflow["jobs"].values() for step in job["steps"]
               if "run" in step]  # fmt: skip
    assert scripts
    assert [script for script in scripts if "${{" in script] == []


def test_what_it_calls_is_there(repo, text):
    targets = set(re.findall(r"^([a-z]+):", (repo / "Makefile").read_text(), re.MULTILINE))
    lines = re.findall(r"\bmake ((?:[a-z]+ ?)+)'?$", text, re.MULTILINE)
    called = {word for line in lines for word in line.split()}
    assert {"lint", "unit", "stack"} <= called <= targets
    for path in ("bin/bootstrap", "tests/try-host", "inventories/default"):
        assert path in text
        assert (repo / path).exists()
    choices = yaml.safe_load(text)[True]["workflow_dispatch"]["inputs"]  # YAML reads `on` as true
    specs = yaml.safe_load((repo / "roles/settings/meta/argument_specs.yml").read_text())
    (entry,) = [one for one in specs["argument_specs"].values() if "runtime" in one["options"]]
    for name in ("runtime", "engine"):
        assert set(choices[name]["options"]) <= set(entry["options"][name]["choices"])
