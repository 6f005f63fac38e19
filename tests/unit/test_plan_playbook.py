"""playbooks/plan.yml as a user runs it: no connection for a case file, clear errors, a report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
CASE = {
    "plan_hardware": {
        "gpus": [{"name": "NVIDIA L4", "memory_mib": 23034, "compute_capability": "8.9"}],
        "ram_mib": 64000,
        "cpus": 16,
        "disk_free_mib": 500000,
    }
}


@pytest.fixture
def run(tmp_path):
    """Run the playbook for a host that no name server knows."""
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("all: {hosts: {plan-test: {ansible_host: nowhere.invalid}}}\n")
    report = REPO / "reports/plan-test/plan.json"

    def playbook(case, *more):
        file = tmp_path / "case.json"
        file.write_text(json.dumps(case))
        argv = [Path(sys.executable).parent / "ansible-playbook", "-i", inventory,
                "playbooks/plan.yml", "-l", "plan-test", "-e", f"@{file}", *more]  # fmt: skip
        environment = {**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg")}
        done = subprocess.run(
            argv, cwd=REPO, env=environment, capture_output=True, text=True, check=False
        )
        return done, report

    report.unlink(missing_ok=True)
    yield playbook
    report.unlink(missing_ok=True)
    if report.parent.is_dir():
        report.parent.rmdir()


def test_plan_of_a_case_file_in_check_mode(run):
    done, report = run(CASE, "--check", "--diff")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "changed=0" in done.stdout
    assert "deepseek-r1-32b awq" in done.stdout
    plan = json.loads(report.read_text())
    assert plan["host"] == "plan-test"
    assert plan["fits"]
    assert {
        "engine", "runtime", "model", "precision", "reasons", "alternatives", "max_model_len",
        "tensor_parallel_size", "pipeline_parallel_size", "max_num_seqs", "kv_cache_dtype",
        "gpu_memory_utilization", "kv_cache_memory_bytes", "enforce_eager", "memory_per_gpu",
        "disk_bytes", "download",
        "estimate", "served_model_name", "problems", "engine_args", "fallback",
    } <= set(plan)  # fmt: skip
    assert set(plan["memory_per_gpu"]) >= {
        "total_bytes", "weights_bytes", "kv_cache_bytes", "kv_cache_tokens", "activation_bytes",
        "cuda_graph_bytes", "other_bytes",
    }  # fmt: skip
    first = report.stat()
    run(CASE)
    assert report.stat().st_mtime_ns == first.st_mtime_ns  # the same plan is not written again


def test_a_plan_that_does_not_fit_is_an_answer(run):
    done, report = run({**CASE, "model": "deepseek-r1-70b"})
    assert done.returncode == 0
    assert "the most able that would fit is" in " ".join(done.stdout.split())
    assert json.loads(report.read_text())["fits"] is False


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({**CASE, "model": "deepseek-r1-33b"}, "deepseek-r1-32b"),
        ({"plan_hardware": {"cpus": 2}}, "plan_hardware.ram_mib"),
        ({**CASE, "modell": "auto"}, "modell"),
    ],
)
def test_a_wrong_case_file_is_an_error(run, case, message):
    done, _report = run(case)
    assert done.returncode != 0
    assert message in done.stdout
