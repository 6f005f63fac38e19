"""A bundle that is not what was made is refused, naming the file. Parts, updates, signatures."""

import json
import os
import random
import shutil
import subprocess
import sys

import pytest

PROJECT = {"deploy.yml": "- hosts: all\n", "bin/bootstrap": "#!/bin/sh\necho bootstrapped\n"}


@pytest.fixture(scope="module")
def r1_bundle(repo):
    sys.path.insert(0, str(repo / "roles/bundle/module_utils"))
    from r1_bundle import packages, seal, sealed

    return {"seal": seal, "sealed": sealed, "packages": packages}


@pytest.fixture
def seal(r1_bundle):
    return r1_bundle["seal"]


@pytest.fixture
def sealed(r1_bundle):
    return r1_bundle["sealed"]


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    for name, text in PROJECT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "bin/bootstrap").chmod(0o755)
    (folder / "secrets").mkdir()
    (folder / "secrets/api_key").write_text("never to be carried")
    return folder


@pytest.fixture
def bundle(tmp_path, project, seal):
    """A sealed bundle of a few files, and how to seal it again."""
    folder = tmp_path / "bundle"
    content = {"packages/a.deb": os.urandom(5000), "wheels/b.whl": os.urandom(70000),
               "models/m/q4_k_m/m.gguf": os.urandom(300000)}  # fmt: skip
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(data)

    def make(**options):
        return seal.seal(folder, project, list(content), {"for": {}}, **options)

    make()
    return folder, make


@pytest.fixture
def keys(tmp_path):
    """Two SSH keys: (private file, public text) by name."""
    found = {}
    for name in ("ours", "theirs"):
        file = tmp_path / name
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file], check=True)
        found[name] = str(file), file.with_suffix(".pub").read_text()
    return found


def unpack(folder, target, *more):
    argv = [sys.executable, folder / "unpack.py", target, *more]
    return subprocess.run(argv, capture_output=True, text=True)


def test_what_was_sealed_is_whole_and_sealed_again_is_the_same(bundle, sealed):
    folder, make = bundle
    manifest = sealed.read(folder)
    wrong, right = sealed.faults(folder, manifest)
    assert wrong == [] and set(right) == set(manifest["files"])
    assert make() == (manifest, False)
    assert not any("secrets" in name for name in manifest["files"])
    assert manifest["files"]["project/bin/bootstrap"]["mode"] == "755"


def test_what_an_earlier_making_left_goes(bundle, sealed):
    folder, make = bundle
    (folder / "packages/old.deb").write_text("old")
    (folder / "models/m/q4_k_m/.complete").write_text("{}")
    make()
    assert not (folder / "packages/old.deb").exists()
    assert (folder / "models/m/q4_k_m/.complete").exists(), "the store's own mark"


@pytest.mark.parametrize("seed", range(30))
def test_every_change_to_a_file_is_found_and_named(bundle, sealed, seed):
    """One byte, a cut, more bytes, a missing file: of any file of the bundle."""
    folder, _make = bundle
    chance = random.Random(seed)
    manifest = sealed.read(folder)
    name = chance.choice(sorted(manifest["files"]))
    path, data = folder / name, bytearray((folder / name).read_bytes())
    how = chance.choice(["byte", "cut", "more", "gone"])
    if how == "byte":
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif how == "cut":
        del data[chance.randrange(len(data)) :]
    elif how == "more":
        data += b"\0"
    path.unlink()
    if how != "gone":
        path.write_bytes(data)
    wrong, right = sealed.faults(folder, manifest)
    assert len(wrong) == 1 and wrong[0].startswith(name + " ")
    assert name not in right
    if name == "unpack.py":
        return  # it cannot tell of itself; a deploy does
    done = unpack(folder, folder.parent / "new")
    assert done.returncode == 1 and f"is not whole: {name} " in done.stderr
    assert not (folder.parent / "new").exists()


def test_a_file_that_was_right_is_not_read_again_until_it_is_touched(bundle, sealed, monkeypatch):
    folder, _make = bundle
    manifest = sealed.read(folder)
    _wrong, seen = sealed.faults(folder, manifest)
    read = []
    real = sealed.sha256_of
    monkeypatch.setattr(sealed, "sha256_of", lambda path: read.append(path.name) or real(path))
    assert sealed.faults(folder, manifest, seen)[0] == [] and read == []
    (folder / "wheels/b.whl").write_bytes(os.urandom(70000))
    wrong, _right = sealed.faults(folder, manifest, seen)
    assert read == ["b.whl"] and "wheels/b.whl has SHA-256" in wrong[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "has no manifest.json (No such file or directory), so it is no bundle"),
        ("{", "has a damaged manifest.json"),
        ('{"format": 1}', "has a damaged manifest.json"),
        ('{"format": 9, "files": {}}', "is of format 9, this version reads format 1"),
        (
            '{"format": 1, "files": {"../../etc/passwd": {"bytes": 1, "sha256": "0"}}}',
            "names the file ../../etc/passwd, which is outside of it",
        ),
    ],
)
def test_a_manifest_that_is_none(bundle, sealed, text, said):
    folder, _make = bundle
    (folder / "manifest.json").unlink()
    if text:
        (folder / "manifest.json").write_text(text)
    with pytest.raises(sealed.Broken) as error:
        sealed.read(folder)
    assert said in str(error.value)


def test_only_what_the_named_key_signed_is_taken(bundle, sealed, keys):
    folder, make = bundle
    private, public = keys["ours"]
    with pytest.raises(sealed.Broken, match=r"is not signed: manifest\.json\.sig is missing"):
        sealed.read(folder, public)
    assert make(key=private)[1] is True
    assert make(key=private)[1] is False
    assert sealed.read(folder, public)["format"] == 1
    with pytest.raises(sealed.Broken, match="was not signed by that key"):
        sealed.read(folder, keys["theirs"][1])
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"for": {}', '"for": {"a": 1}'))
    with pytest.raises(sealed.Broken, match="was not signed by that key, or manifest"):
        sealed.read(folder, public)


def test_a_key_that_cannot_sign_is_named(bundle, r1_bundle, tmp_path):
    _folder, make = bundle
    with pytest.raises(r1_bundle["packages"].Refused) as error:
        make(key=str(tmp_path / "none"))
    assert "bundle_signing_key: value" in str(error.value) and "fix: name a" in str(error.value)


def test_parts_are_put_together_again(bundle, seal, sealed, tmp_path, keys):
    folder, make = bundle
    private, public = keys["ours"]
    make(key=private)
    parts = tmp_path / "parts"
    count, new = seal.split(folder, parts, 100_000, private)
    assert new and count > 3
    assert seal.split(folder, parts, 100_000, private) == (count, False)
    assert all(path.stat().st_size <= 100_000 for path in parts.glob("bundle.tar.*"))
    target = tmp_path / "together"
    done = unpack(parts, target, "--signer", public)
    assert done.returncode == 0 and f"python3 {target}/unpack.py FOLDER" in done.stdout
    manifest = sealed.read(target, public)
    assert manifest == sealed.read(folder) and sealed.faults(target, manifest)[0] == []

    one = sorted(parts.glob("bundle.tar.*"))[1]
    one.write_bytes(one.read_bytes()[:-1])
    shutil.rmtree(target)
    done = unpack(parts, target)
    assert done.returncode == 1 and f"{one.name} has 99999 bytes instead of 100000" in done.stderr
    assert not target.exists()


def test_an_update_holds_what_changed_and_needs_the_older_one(bundle, seal, sealed, tmp_path):
    folder, make = bundle
    old = tmp_path / "carried-before"
    shutil.copytree(folder, old)
    (folder / "wheels/b.whl").write_bytes(os.urandom(100))
    manifest, _new = make()
    update = tmp_path / "update"
    assert seal.update(folder, manifest, old / "manifest.json", update) == (2, True)
    assert seal.update(folder, manifest, old, update) == (2, False)
    held = {str(p.relative_to(update)) for p in update.rglob("*") if p.is_file()}
    assert held == {"manifest.json", "unpack.py", "wheels/b.whl"}
    older = json.loads((old / "manifest.json").read_text())["id"]
    wrong, _right = sealed.faults(update, sealed.read(update))
    said = sealed.told(wrong, sealed.read(update))
    assert f"this is an update: copy it over the folder of bundle {older}" in said
    shutil.copytree(update, old, dirs_exist_ok=True)
    assert sealed.faults(old, sealed.read(old))[0] == []


def test_the_project_is_unpacked_and_what_its_owner_changed_stays(bundle, project, tmp_path):
    folder, make = bundle
    target = tmp_path / "there"
    done = unpack(folder, target)
    assert done.returncode == 0, done.stderr
    assert "bootstrapped" in done.stdout and f"deploy.yml -l HOST -e bundle={folder}" in done.stdout
    assert (target / "deploy.yml").read_text() == PROJECT["deploy.yml"]
    assert os.access(target / "bin/bootstrap", os.X_OK)

    (target / "deploy.yml").write_text("mine\n")
    (project / "deploy.yml").write_text("- hosts: new\n")
    (project / "more.yml").write_text("- hosts: more\n")
    make()
    done = unpack(folder, target)
    assert "You changed deploy.yml: it stays, the new one is deploy.yml.from-bundle" in done.stdout
    assert (target / "deploy.yml").read_text() == "mine\n"
    assert (target / "deploy.yml.from-bundle").read_text() == "- hosts: new\n"
    assert (target / "more.yml").exists()
    (project / "more.yml").unlink()
    make()
    assert unpack(folder, target).returncode == 0
    assert not (target / "more.yml").exists()


def test_a_folder_of_others_is_left_alone(bundle, tmp_path):
    folder, _make = bundle
    target = tmp_path / "full"
    target.mkdir()
    (target / "theirs").write_text("theirs")
    done = unpack(folder, target)
    assert done.returncode == 1 and "there are files of others. Name another folder" in done.stderr
    assert [path.name for path in target.iterdir()] == ["theirs"]


def test_the_environment_is_told_of_the_bundle_alone(bundle, project, tmp_path):
    folder, make = bundle
    (project / "bin/bootstrap").write_text(
        'env | grep -E "^(PIP|APT)_" | sort; cat "$APT_CONFIG" "$(dirname "$APT_CONFIG")"/sources*'
    )
    make()
    said = unpack(folder, tmp_path / "there").stdout
    assert "PIP_NO_INDEX=1" in said and f"PIP_FIND_LINKS={folder}/wheels" in said
    assert f"deb [trusted=yes] file:{folder}/packages ./" in said
    assert 'Dir::Etc::sourceparts "/dev/null"' in said
