"""What goes into a bundle: wheels for another Python, packages with all they need."""

import json
import subprocess
import sys
import tarfile

import pytest

LOCK = """\
always==1 \\
    --hash=sha256:aa
old==1 ; python_full_version < '3.12' \\
    --hash=sha256:bb
new==2 ; python_full_version >= '3.12' \\
    --hash=sha256:cc \\
    --hash=sha256:dd
windows==1 ; sys_platform == 'win32' \\
    --hash=sha256:ee
"""


@pytest.fixture(scope="module")
def r1_bundle(repo):
    sys.path.insert(0, str(repo / "roles/bundle/module_utils"))
    import r1_bundle.packages
    import r1_bundle.sealed
    import r1_bundle.wheels

    return r1_bundle


def test_conditions_are_read_for_the_python_of_the_host(r1_bundle):
    """pip would read them as those of the Python it runs in."""
    read = r1_bundle.wheels.requirements
    assert read(LOCK, "3.13.5", "x86_64") == (
        "always==1 \\\n    --hash=sha256:aa\nnew==2 \\\n    --hash=sha256:cc \\\n"
        "    --hash=sha256:dd\n"
    )
    assert "old==1" in read(LOCK, "3.11", "x86_64") and "new" not in read(LOCK, "3.11", "x86_64")


def test_wheels_of_a_newer_glibc_are_left_alone(r1_bundle):
    tags = r1_bundle.wheels.platforms("2.36", "x86_64")
    assert "manylinux_2_36_x86_64" in tags and "manylinux2014_x86_64" in tags
    assert "manylinux_2_37_x86_64" not in tags


def test_real_wheels_for_another_python_come_once(r1_bundle, repo, tmp_path):
    """supervisord's lock, for a Python that need not be here."""
    lock = (repo / "roles/supervisor/files/requirements.txt").read_text()
    system = {"python": "3.13.5", "glibc": "2.41", "arch": "x86_64"}
    folder = tmp_path / "wheels"
    names, changed, keys = r1_bundle.wheels.gather(folder, [(lock, "3.13.5")], system)
    assert changed and names and all(name.endswith(".whl") for name in names)
    assert keys == [r1_bundle.wheels.key_of(lock, "3.13")]
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert r1_bundle.wheels.gather(folder, [(lock, "3.13.5")], system) == (names, False, keys)
    assert times == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "left-over.whl").write_text("")
    assert r1_bundle.wheels.gather(folder, [(lock, "3.13.5")], system)[1] is True
    assert not (folder / "left-over.whl").exists()


def test_a_wheel_that_is_not_to_be_had_is_named(r1_bundle, tmp_path):
    lock = "no-such-package-of-deepseek-r1==1 \\\n    --hash=sha256:" + "0" * 64 + "\n"
    system = {"python": "3.13.5", "glibc": "2.41", "arch": "x86_64"}
    with pytest.raises(r1_bundle.packages.Refused) as error:
        r1_bundle.wheels.gather(tmp_path / "wheels", [(lock, "3.13.5")], system)
    assert "pip cannot bring all wheels for Python 3.13.5" in str(error.value)
    assert "no-such-package-of-deepseek-r1" in str(error.value)


def test_a_release_that_this_machine_does_not_serve(r1_bundle, tmp_path):
    with pytest.raises(r1_bundle.packages.Refused) as error:
        r1_bundle.packages.gather(tmp_path / "packages", ["hello"], "nosuch", "x86_64", [])
    assert "nosuch" in str(error.value)


def test_packages_come_with_all_they_need_and_once(r1_bundle, tmp_path):
    """Down to the C library, whatever is installed here; apt installs from the folder alone."""
    folder, codename = tmp_path / "packages", r1_bundle.packages.os_release()["VERSION_CODENAME"]
    names, changed = r1_bundle.packages.gather(folder, ["zstd"], codename, "x86_64", [])
    assert changed and {"Packages", "Release"} < set(names)
    assert any(name.startswith("zstd_") for name in names)
    assert any(name.startswith("libc6_") for name in names)
    again = r1_bundle.packages.gather(folder, ["zstd"], codename, "x86_64", [])
    assert again == (names, False)

    environment = r1_bundle.sealed.write_apt_config(folder, tmp_path / "apt")
    root = tmp_path / "status"
    root.touch()
    argv = ["apt-get", "--simulate", "-o", f"Dir::State::status={root}", "-qq"]
    run = {"env": {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", **environment}, "text": True}
    subprocess.run(["apt-get", "-qq", "update"], check=True, **run)
    done = subprocess.run([*argv, "install", "zstd"], capture_output=True, **run)
    assert done.returncode == 0, done.stderr
    assert "Inst zstd" in done.stdout and "Inst libc6" in done.stdout


@pytest.fixture(scope="module")
def carry(load_plugin):
    return load_plugin("roles/bundle/action_plugins/bundle_carry.py")


def test_what_goes_over_in_one_archive_is_bearable(carry):
    files = {name: {"bytes": size << 20} for name, size in
             {"a": 100, "b": 100, "c": 100, "d": 900, "e": 1}.items()}  # fmt: skip
    assert carry.loads(files) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert carry.loads({}) == []


def test_a_file_damaged_on_its_way_to_the_host_is_named(repo, tmp_path):
    """The module alone, as Ansible runs it; its imports are found as on a host."""
    (tmp_path / "w.whl").write_bytes(b"damaged")
    with tarfile.open(tmp_path / "bundle.tar", "w") as tar:
        tar.add(tmp_path / "w.whl", arcname="wheels/w.whl")
    arguments = {
        "kind": "wheels",
        "dest": str(tmp_path / "dest"),
        "archive": str(tmp_path / "bundle.tar"),
        "files": {"wheels/w.whl": "0" * 64},
    }
    code = (
        "import ansible.module_utils, sys; ansible.module_utils.__path__.append(sys.argv[1]); "
        "import runpy; sys.argv = sys.argv[2:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    given = tmp_path / "arguments.json"
    given.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
    module = repo / "roles/bundle/library/bundle_carry.py"
    argv = [sys.executable, "-c", code, repo / "roles/bundle/module_utils", module, given]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 1
    said = json.loads(done.stdout)["msg"]
    assert "wheels/w.whl was damaged on its way to the host; run again" in said
    assert not (tmp_path / "dest/wheels/w.whl").exists()
