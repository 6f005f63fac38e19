"""playbooks/models.yml: list, verify and prune, through the role in real plays."""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = Path(__file__).resolve().parents[2] / "roles/model/library/model_store.py"


@pytest.fixture
def root(tmp_path) -> Path:
    """A store of three models, the second of which is deployed, and an unfinished fetch."""
    root = tmp_path / "data/models"
    for name in ("a/q4_k_m", "b/q4_k_m", "b/q4_k_m-long"):
        folder, body = root / name, name.encode()
        folder.mkdir(parents=True)
        (folder / "m.gguf").write_bytes(body)
        file = {"path": "m.gguf", "bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        mark = {"source": "huggingface", "repository": "o/n", "files": [file]}
        (folder / ".complete").write_text(json.dumps(mark))
    (root / ".deployed").write_text("b/q4_k_m\n")
    (root / "a/.pins.json").write_text("{}")
    (root / "a/.q8_0.partial").mkdir()
    (root / "a/.q8_0.partial/x").write_bytes(b"x")
    return root


@pytest.fixture
def store(play, tmp_path):
    given = {"__model_configuration": [str(tmp_path / "etc")]}

    def run(*flags, **settings) -> dict:
        return play({}, *flags, tasks_from="store.yml", **given, **settings)

    return run


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.glob("*/*")}


def test_list_changes_nothing(store, root):
    before = names(root)
    answer = store()
    assert answer["rc"] == 0 and not answer["changed"], answer["out"]
    assert "b/q4_k_m: 0.0 GB, whole, in use, from huggingface o/n" in answer["out"]
    assert "a/q4_k_m: 0.0 GB, whole, not in use" in answer["out"]
    assert "a/.q8_0.partial: 0.0 GB, unfinished" in answer["out"]
    assert names(root) == before


def test_an_empty_host_has_none(store):
    answer = store()
    assert answer["rc"] == 0 and "There is no model under" in answer["out"], answer["out"]


def test_verify_reads_every_byte(store, root):
    assert store(model_store="verify")["rc"] == 0
    path = root / "a/q4_k_m/m.gguf"
    before = path.stat()
    path.write_bytes(b"a/q4_k_M")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    answer = store(model_store="verify")
    assert answer["rc"] != 0
    for body in (b"a/q4_k_M", b"a/q4_k_m"):
        assert hashlib.sha256(body).hexdigest() in answer["out"]
    assert str(path) in answer["out"]
    assert "Run deploy.yml -e model_verify=true" in answer["out"]


def test_prune_is_forecast_done_and_done_once(store, root):
    before = names(root)
    forecast = store("--check", "--diff", model_store="prune")
    assert forecast["rc"] == 0 and forecast["changed"], forecast["out"]
    assert "-a/q4_k_m: 0.0 GB" in forecast["out"] and "-b/q4_k_m:" not in forecast["out"]
    assert names(root) == before
    done = store("--diff", model_store="prune")
    assert done["rc"] == 0 and done["changed"], done["out"]
    assert names(root) == {"b/q4_k_m", "a/.pins.json"}
    again = store("--check", "--diff", model_store="prune")
    assert again["rc"] == 0 and not again["changed"], again["out"]


def prune(root: Path, **more) -> dict:
    given = {"root": str(root), "action": "prune", **more}
    done = subprocess.run(
        [sys.executable, MODULE], input=json.dumps({"ANSIBLE_MODULE_ARGS": given}),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def test_what_a_configuration_or_a_process_names_is_in_use(root, tmp_path):
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "unit").write_text(f"--model {root}/a/q4_k_m/m.gguf")
    running = [sys.executable, "-c", "input()", f"{root}/b/q4_k_m-long"]
    with subprocess.Popen(running, stdin=subprocess.PIPE) as process:
        answer = prune(root, configuration=[str(etc)])
        process.communicate(b"\n")
    assert answer["removed"] == ["a/.q8_0.partial"]
    assert prune(root, configuration=[str(etc)])["removed"] == ["b/q4_k_m-long"]


def test_a_longer_name_does_not_keep_a_shorter_one(root, tmp_path):
    (root / ".deployed").write_text("b/q4_k_m-long\n")
    (tmp_path / "unit").write_text(f"--model {root}/b/q4_k_m-long/m.gguf")
    assert "b/q4_k_m" in prune(root, configuration=[str(tmp_path / "unit")])["removed"]


def test_what_is_to_be_kept_and_what_is_being_fetched_stays(root):
    lock = os.open(root / "a", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        assert prune(root, keep=["b/*-long"])["removed"] == []
    finally:
        os.close(lock)
    assert prune(root, keep=["b/*-long"])["removed"] == ["a/q4_k_m", "a/.q8_0.partial"]


def test_prune_refuses_when_nothing_says_what_is_deployed(root):
    (root / ".deployed").unlink()
    answer = prune(root)
    assert answer["failed"] and len(names(root)) == 5
    for text in ("model_store: prune would remove every model", "Run deploy.yml", "model_keep"):
        assert text in answer["msg"]
    assert prune(root, keep=["a/*"])["removed"]


def test_a_deploy_notes_what_prune_has_to_leave(model_files, bundled, tmp_path):
    assert model_files(bundled)["changed"]
    assert not model_files(bundled)["changed"]
    assert (tmp_path / "models/.deployed").read_text() == "m/q4_k_m\n"
    answer = prune(tmp_path / "models")
    assert not answer["changed"] and len(answer["models"]) == 1
