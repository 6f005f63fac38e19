"""Verify and report against the real gateway, Redis and engine."""

import json
import re
import socket
import subprocess
from pathlib import Path

import pytest

# The end of deploy.yml; what the roles before it set comes as extra variables.
TAIL = """
- hosts: all
  gather_facts: false
  tasks:
    - import_role: {name: settings}
    - import_role: {name: verify}
    - import_role: {name: report}
"""
PLAN = {
    "engine": "llamacpp",
    "model": "tiny-r1",
    "served_model_name": "tiny-r1",
    "precision": "q4_k_m",
    "max_model_len": 2048,
    "memory": {"total_bytes": 64 * 1024**3},
    "download": {"source": "bundled", "bytes": 2400000},
    "fallback": False,
    "reasons": ["hardware: 2 CPUs.", "model: tiny-r1 (no AIME score known), as you set it."],
}
LOUD = (
    "NO MODEL SOURCE ANSWERS: deepseek-r1-7b would be deployed here, but modelscope: "
    "https://www.modelscope.cn does not answer. So the built-in test model tiny-r1 is deployed."
)


@pytest.fixture
def stack(redis, llama, start_gateway):
    """The real gateway before a real llama-server with the tiny model, and a real Redis."""
    return start_gateway(llama)


@pytest.fixture
def tail(deployed, play):
    """Play verify and report as deploy.yml ends with them."""
    (deployed / "tail.yml").write_text(TAIL)

    def run(stack, *args, plan=PLAN, **more):
        key = stack.role.variables["secrets_api_keys"][0]["key"]
        (deployed / "secrets/local/api_key").write_text(key + "\n")
        settings = {
            "plan_result": plan,
            "inspect_result": {"init": "none"},
            "gateway_port": stack.port,
            "engine_port": stack.role.variables["engine_port"],
            "gateway_tls": "off",
            "secrets_path": str(deployed / "secrets/local"),
            **more,
        }
        return play(*args, playbook="tail.yml", **settings)

    return run


def failed(clone):
    report = json.loads((clone / "reports/local/verify.json").read_text())
    return [check["name"] for check in report["checks"] if not check["passed"]]


def curl_line(text):
    found = re.search(r"^ *curl .*?json\.tool[^\n]*", text, re.MULTILINE | re.DOTALL)
    assert found, text
    return found.group()


def paste(line, folder):
    result = subprocess.run(
        ["bash", "-c", line], cwd=folder, capture_output=True, text=True, check=True
    )
    return json.loads(result.stdout)["choices"][0]["message"]


def test_all_pass_twice_and_the_curl_line_works(deployed, tail, stack):
    for _ in range(2):
        result = tail(stack)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "changed=0" in result.stdout
        assert failed(deployed) == []
    screen = result.stdout.split("What you have now")[1].split("PLAY RECAP")[0]
    for text in (
        f"DeepSeek-R1 answers at {stack.url}",
        "tiny-r1 (no AIME score known), as you set it.",
        "secrets/local/api_key",
        "12 of 12 passed",
        "deepseek-r1 start",
    ):
        assert text in screen
    assert "!!!" not in screen
    assert len(screen.strip().splitlines()) <= 25
    message = paste(curl_line(screen), deployed)
    assert message["content"].strip() == "2 + 2 = 4."
    assert "2+2 equals 4" in message["reasoning_content"]


def test_the_fallback_is_loud(tail, stack):
    plan = {**PLAN, "fallback": True, "reasons": [LOUD, "hardware: 2 CPUs."]}
    result = tail(stack, plan=plan)
    assert result.returncode == 0, result.stdout + result.stderr
    screen = result.stdout.split("What you have now")[1].split("PLAY RECAP")[0]
    assert "!!! ONLY THE TINY TEST MODEL" in screen
    assert LOUD in " ".join(screen.replace("!!!", " ").split())
    assert max(map(len, screen.splitlines())) <= 100
    assert "modelscope_endpoint" in screen


def test_tls_with_an_authority_of_its_own(deployed, tail, paths, redis, llama, start_gateway,
                                          certificate):  # fmt: skip
    pem = Path(paths["r1_etc"]) / "gateway/tls.pem"
    pem.parent.mkdir(parents=True)
    pem.write_text("".join(path.read_text() for path in certificate))
    (deployed / "secrets/local/tls").mkdir()
    (deployed / "secrets/local/tls/ca.crt").write_text(certificate[0].read_text())
    files = {"gateway_tls_certificate": str(certificate[0]), "gateway_tls_key": str(certificate[1])}
    stack = start_gateway(llama, gateway_tls="own", **files)
    result = tail(stack, gateway_tls="self_signed")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "answers at https://127.0.0.1:" in result.stdout
    line = curl_line(result.stdout)
    assert "--cacert secrets/local/tls/ca.crt" in line
    assert paste(line, deployed)["content"].strip() == "2 + 2 = 4."


def test_any_question_survives_the_shell(deployed, play, stand_in):
    (deployed / "tail.yml").write_text(TAIL)
    question = '你好, it\'s "me" $HOME `id` \\n'
    result = play(
        playbook="tail.yml",
        plan_result=PLAN,
        inspect_result={"init": "none"},
        gateway_port=stand_in.server_port,
        gateway_tls="off",
        secrets_path=str(deployed / "secrets/local"),
        verify_question=question,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    stand_in.cache.clear()
    assert paste(curl_line(result.stdout), deployed)["content"] == "2 + 2 = 4."
    (asked,) = stand_in.cache
    assert json.loads(asked)["messages"][0]["content"] == question


def test_check_mode_before_and_after_a_deploy(deployed, tail, stack):
    result = tail(stack, "--check", "--diff")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "12 of 12 checks passed" in result.stdout
    assert "Check mode: nothing was changed" in result.stdout
    assert not (deployed / "reports/local/verify.json").exists()
    fresh = tail(stack, "--check", "--diff", secrets_path=str(deployed / "none"))
    assert fresh.returncode == 0, fresh.stdout + fresh.stderr
    assert "Check mode: nothing was changed" in fresh.stdout
    assert "2.4 MB, source: bundled" in fresh.stdout


def test_check_mode_while_stopped_foretells_and_passes(tail, stack):
    stack.process.terminate()
    stack.process.wait()
    result = tail(stack, "--check", "--diff")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "connection refused" in result.stdout


def test_an_engine_that_died(deployed, tail, start_gateway, redis, free_port):
    result = tail(start_gateway(free_port()), verify_ready_timeout=1)
    assert result.returncode != 0
    assert "/healthz: 503" in result.stdout
    assert "deepseek-r1 logs engine" in result.stdout
    assert failed(deployed) == ["health", "models", "completion", "reasoning", "stream", "cache"]


def test_a_redis_that_died(deployed, tail, stack, redis):
    redis.kill()
    redis.wait()
    result = tail(stack)
    assert failed(deployed) == ["cache"]
    assert "X-Cache BYPASS" in result.stdout
    assert "cannot reach Redis" in result.stdout


def test_a_cache_that_is_switched_off(tail, llama, start_gateway):
    result = tail(start_gateway(llama, gateway_cache_ttl=0), gateway_cache_ttl=0)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "switched off by gateway_cache_ttl=0" in result.stdout


def test_a_rate_limit_below_what_verify_asks(deployed, tail, llama, start_gateway, redis):
    result = tail(start_gateway(llama, gateway_limits={"requests_per_minute": 2}))
    assert result.returncode != 0
    assert "gateway_limits allows fewer requests" in result.stdout


def test_an_open_redis_port(deployed, tail, stack, verify):
    if not verify.own_addresses():
        pytest.skip("this machine has loopback addresses only")
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        result = tail(stack, verify_closed_ports=[port])
    assert failed(deployed) == ["ports_closed"]
    assert f"ss -ltnp 'sport = :{port}'" in result.stdout
