"""Models that ship with the project or lie on a disk: through the role, in real plays."""

import hashlib
import json
import os
import subprocess
import sys

import pytest


def test_bundled_first_forecast_then_there_then_untouched(play, bundled, tiny_gguf):
    forecast = play(bundled, "--check", "--diff")
    assert forecast["rc"] == 0 and forecast["changed"], forecast["out"]
    assert "tiny-r1-q4_k_m.gguf" in forecast["out"]
    assert not play.data.exists()

    first = play(bundled)
    assert first["rc"] == 0 and first["changed"], first["out"]
    model = play.home / tiny_gguf.name
    assert model.read_bytes() == tiny_gguf.read_bytes()
    assert model.stat().st_mode & 0o777 == 0o644
    assert play.home.stat().st_mode & 0o777 == 0o755
    marker = json.loads(play.marker.read_text())
    assert marker["source"] == "bundled"
    assert marker["files"][0]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert not list(play.home.parent.glob("*.partial"))

    again = play(bundled, "--diff")
    assert again["rc"] == 0 and not again["changed"], again["out"]


def test_damage_is_seen_and_healed(model_files, bundled, tmp_path, tiny_gguf):
    path = tmp_path / "models/m/q4_k_m" / tiny_gguf.name
    assert model_files(bundled)["model_path"] == str(path)
    content = path.read_bytes()
    before = path.stat()

    path.write_bytes(content[:-1])
    assert model_files(bundled)["changed"]
    assert path.read_bytes() == content

    # Same size and time, other bytes: only a full look finds it.
    before = path.stat()
    path.write_bytes(content[:-1] + b"!")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not model_files(bundled)["changed"]
    assert model_files(bundled, verify=True)["changed"]
    assert path.read_bytes() == content


def test_own_file_and_own_folder(model_files, entry, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "config.json").write_text("{}")
    (own / "model.safetensors").write_bytes(b"weights")
    download = {"source": "file", "repository": str(own), "revision": None, "files": []}
    answer = model_files(download)
    assert answer["changed"]
    assert answer["model_path"] == str(tmp_path / "models/m/q4_k_m")
    assert not model_files(download)["changed"]

    (own / "model.safetensors").write_bytes(b"better weights")
    assert model_files(download)["changed"]
    kept = tmp_path / "models/m/q4_k_m/model.safetensors"
    assert kept.read_bytes() == b"better weights"

    single = own / "mine.gguf"
    single.write_bytes(b"GGUF")
    download = {"source": "file", "repository": str(single), "files": []}
    answer = model_files(download, model="single")
    assert answer["model_path"] == str(tmp_path / "models/single/q4_k_m/mine.gguf")


def test_a_checkpoint_is_the_folder_of_its_config(model_files, entry, tmp_path, tiny_gguf):
    folder = tiny_gguf.parent
    files = [
        entry(str(path.relative_to(folder)), path.read_bytes())
        for path in sorted((folder / "hf").iterdir())
    ]
    answer = model_files({"source": "bundled", "repository": "tiny-r1", "files": files})
    assert answer["model_path"] == str(tmp_path / "models/m/q4_k_m/hf")


def test_missing_own_file_names_the_path(play):
    download = {"source": "file", "repository": "/nowhere/mine.gguf", "files": []}
    answer = play(download)
    assert answer["rc"] != 0
    assert "/nowhere/mine.gguf: no such file" in answer["out"]
    assert "Correct the model entry's path" in answer["out"]


@pytest.fixture
def far_python(tmp_path, repo) -> str:
    """A Python that sees no file of the project's models, as on another host."""
    script = tmp_path / "python"
    script.write_text(
        "#!/bin/sh\n"
        f"exec unshare --mount sh -c 'mount -t tmpfs none {repo}/roles/model/files"
        f' && exec {sys.executable} "$@"\' sh "$@"\n'
    )
    script.chmod(0o755)
    if subprocess.run([script, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip("mount namespaces need root")
    return str(script)


def test_files_that_only_the_controller_has_are_carried(play, bundled, tiny_gguf, far_python):
    given = {"ansible_python_interpreter": far_python}
    forecast = play(bundled, "--check", **given)
    assert forecast["rc"] == 0 and forecast["changed"], forecast["out"]
    first = play(bundled, **given)
    assert first["rc"] == 0 and first["changed"], first["out"]
    assert (play.home / tiny_gguf.name).read_bytes() == tiny_gguf.read_bytes()
    again = play(bundled, **given)
    assert again["rc"] == 0 and not again["changed"], again["out"]

    folder = {"source": "file", "repository": str(tiny_gguf.parent / "hf"), "files": []}
    first = play(folder, **given)
    assert first["rc"] == 0 and first["changed"], first["out"]
    assert (play.home / "config.json").exists()
    again = play(folder, **given)
    assert again["rc"] == 0 and not again["changed"], again["out"]


def test_wrong_bytes_are_refused_with_both_hashes(model_files, entry, tmp_path):
    own = tmp_path / "mine.gguf"
    own.write_bytes(b"this")
    wanted = {**entry("mine.gguf", b"that")}
    answer = model_files({"source": "file", "repository": str(own), "files": [wanted]})
    assert answer["failed"]
    for text in ("mine.gguf", wanted["sha256"], hashlib.sha256(b"this").hexdigest()):
        assert text in answer["msg"]
    assert not (tmp_path / "models/m/q4_k_m").exists()


def test_a_local_file_of_another_size_is_refused(model_files, entry, tmp_path):
    own = tmp_path / "mine.gguf"
    own.write_bytes(b"short")
    download = {"source": "file", "repository": str(own), "files": [entry(own.name, b"longer")]}
    answer = model_files(download, defer=True)
    assert "mine.gguf has 5 bytes, the catalogue says 6" in answer["msg"]


def test_a_path_cannot_leave_the_folder(model_files, entry):
    for path in ("../mine.gguf", "/etc/mine.gguf", "a//b.gguf"):
        answer = model_files({"source": "bundled", "files": [entry(path, b"")]})
        assert "leaves the model's folder" in answer["msg"]
