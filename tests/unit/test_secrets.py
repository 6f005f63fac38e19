"""The role secrets, played on this machine: made once, kept, lost, renewed, encrypted."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
PASSWORD = "correct horse battery staple"


@pytest.fixture
def play(repo, tmp_path):
    """Play the role; return what it said and the facts it set."""
    book = [
        {
            "hosts": "all",
            "gather_facts": False,
            "tasks": [
                {"ansible.builtin.import_role": {"name": "settings", "tasks_from": "refuse.yml"}},
                {"ansible.builtin.import_role": {"name": "secrets"}},
                {"ansible.builtin.import_role": {"name": "report"}, "when": False},
                {
                    "ansible.builtin.copy": {
                        "dest": str(tmp_path / "facts.json"),
                        "content": "{{ [secrets_api_keys, secrets_engine_key,"
                        " __report_show_key] | to_json }}",
                        "mode": "0600",
                    },
                    "check_mode": False,
                    "changed_when": False,
                },
            ],
        }
    ]
    (tmp_path / "play.json").write_text(json.dumps(book))

    def run(*options, password=None, **settings):
        given = {
            "secrets_path": str(tmp_path / "controller"),
            "data_path": str(tmp_path / "data"),
            "api_keys": ["first", "bob"],
            "ansible_python_interpreter": sys.executable,
            **settings,
        }
        command = [BIN / "ansible-playbook", tmp_path / "play.json", "-i", "box,", "-c", "local"]
        if password:
            (tmp_path / "password").write_text(password)
            options = (*options, "--vault-password-file", tmp_path / "password")
        return subprocess.run(
            [*command, "-e", json.dumps(given), *options],
            cwd=repo,
            capture_output=True,
            text=True,
            env={**os.environ, "ANSIBLE_CONFIG": str(repo / "ansible.cfg")},
        )

    def facts(*options, **settings):
        done = run(*options, **settings)
        assert done.returncode == 0, done.stdout + done.stderr
        keys, engine, shown_by = json.loads((tmp_path / "facts.json").read_text())
        assert shown_by == ("ansible-vault view" if settings.get("password") else "cat")
        for secret in (*(client["key"] for client in keys), engine):
            assert secret not in done.stdout + done.stderr
        changed = int(re.search(r"changed=(\d+)", done.stdout).group(1))
        return changed, {client["name"]: client["key"] for client in keys} | {"engine": engine}

    return facts, run


def files(folder):
    return {path.name: path.read_text().strip() for path in folder.iterdir()}


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_made_once_and_readable_for_their_owner_alone(play, tmp_path):
    facts, _ = play
    changed, would_be = facts("--check", secrets_keep_on_host=False)
    assert changed == 1
    assert not (tmp_path / "controller").exists()
    changed, made = facts(secrets_keep_on_host=False)
    assert changed == 1
    assert set(made) == {"first", "bob", "engine"}
    assert not set(made.values()) & set(would_be.values())
    assert files(tmp_path / "controller") == {
        "api_key": made["first"],
        "api_key.bob": made["bob"],
        "engine_key": made["engine"],
    }
    assert mode(tmp_path / "controller") == 0o700
    assert {mode(path) for path in (tmp_path / "controller").iterdir()} == {0o600}
    assert facts(secrets_keep_on_host=False) == (0, made)
    assert not (tmp_path / "data").exists()


def test_a_controller_that_lost_them_takes_them_from_the_host(play, tmp_path):
    facts, _ = play
    _, made = facts()  # the controller is the host: copies are kept
    copies, own = tmp_path / "data/secrets", tmp_path / "controller"
    assert files(copies) == files(own)
    assert mode(copies) == 0o700
    assert {mode(path) for path in copies.iterdir()} == {0o600}
    assert facts() == (0, made)
    assert facts("--check") == (0, made)

    shutil.rmtree(own)
    changed, found = facts("--check")
    assert (changed, found) == (1, made)
    assert not own.exists()
    changed, found = facts(secrets_keep_on_host="false")
    assert (changed, found) == (1, made), "taken, whether or not copies are kept"
    assert facts() == (0, made)

    shutil.rmtree(own)
    own.mkdir(mode=0o700)
    (own / "api_key").write_text("sk-brought-by-hand-Zq8vTr2LmXw9Kd\n")
    (own / "api_key").chmod(0o600)
    copies.chmod(0o755)
    (copies / "engine_key").chmod(0o644)
    _, found = facts()
    assert found == made | {"first": "sk-brought-by-hand-Zq8vTr2LmXw9Kd"}, "the controller's wins"
    assert files(copies) == files(own)
    assert (mode(copies), mode(copies / "engine_key")) == (0o700, 0o600)


def test_a_file_that_is_removed_alone_is_renewed(play, tmp_path):
    facts, _ = play
    _, made = facts()
    (tmp_path / "controller/api_key.bob").unlink()
    changed, renewed = facts()
    assert changed == 1
    assert renewed["bob"] != made["bob"]
    assert renewed | {"bob": made["bob"]} == made
    assert files(tmp_path / "data/secrets") == files(tmp_path / "controller")


def test_encrypted_files(play, tmp_path):
    facts, run = play
    _, made = facts(secrets_keep_on_host=False)
    (tmp_path / "password").write_text(PASSWORD)
    vault = [BIN / "ansible-vault", "encrypt", "--vault-password-file", tmp_path / "password"]
    file = tmp_path / "controller/api_key"
    subprocess.run([*vault, file], check=True, capture_output=True)
    assert file.read_text().startswith("$ANSIBLE_VAULT")
    assert facts(secrets_keep_on_host=False, password=PASSWORD) == (0, made)

    for password, reason in [(None, "no vault secrets"), ("wrong", "ecryption failed")]:
        done = run(password=password)
        assert done.returncode == 2
        assert f"{file}: value (encrypted) cannot be decrypted" in " ".join(done.stdout.split())
        assert reason in done.stdout
        assert "--ask-vault-pass" in done.stdout
        assert "changed=0" in done.stdout

    changed, kept = facts(password=PASSWORD)
    assert (changed, kept) == (1, made)
    assert files(tmp_path / "data/secrets") == files(tmp_path / "controller"), (
        "encrypted there, too"
    )
    shutil.rmtree(tmp_path / "controller")
    assert facts(password=PASSWORD) == (1, made)
