"""Environments of services: a second run that finds the first still at work waits for it."""

import json
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
ANSIBLE = Path(sys.executable).parent / "ansible-playbook"


def test_two_runs_at_once(tmp_path):
    venv = tmp_path / "venv"
    task = {
        "ansible.builtin.import_tasks": str(REPO / "roles/host/tasks/venv.yml"),
        "vars": {
            "host_venv_title": "supervisord",
            "host_venv_path": str(venv),
            "host_venv_lock": (REPO / "roles/supervisor/files/requirements.txt").read_text(),
            "host_python": sys.executable,
            "host_wheels": "",
        },
    }
    play = [{"hosts": "all", "gather_facts": False, "tasks": [task]}]
    (tmp_path / "play.json").write_text(json.dumps(play))
    argv = [ANSIBLE, tmp_path / "play.json", "-i", "box,", "-c", "local"]
    argv += ["-e", f"ansible_python_interpreter={sys.executable}"]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": tmp_path}
    runs = [subprocess.Popen(argv, **how) for _ in range(3)]
    for run in runs:
        output, _ = run.communicate(timeout=120)
        assert run.returncode == 0, output
    subprocess.run([venv / "bin/supervisord", "--version"], check=True)
