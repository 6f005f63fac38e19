"""Verify and report against the real gateway, Redis and engine."""

import json
import re
import subprocess

import pytest


@pytest.fixture
def stack(redis, llama, start_gateway):
    """The real gateway before a real llama-server with the tiny model, and a real Redis."""
    return start_gateway(llama, gateway_address="0.0.0.0", gateway_server_names=["127.0.0.1"])


def settings_for(stack, **more):
    return {"gateway_port": stack.port, "verify_closed_ports": [], **more}


def failed(clone):
    report = json.loads((clone / "reports/local/verify.json").read_text())
    return [check["name"] for check in report["checks"] if not check["passed"]]


def test_all_checks_pass_twice(deployed, play, stack):
    for _ in range(2):
        result = play(**settings_for(stack, engine_port=stack.role.variables["engine_port"]))
        assert result.returncode == 0, result.stdout + result.stderr
        assert "12 of 12 checks passed" in result.stdout


def test_an_engine_that_died(deployed, play, start_gateway, redis, free_port):
    stack = start_gateway(free_port(), gateway_address="0.0.0.0")
    result = play(**settings_for(stack, verify_ready_timeout=1))
    assert result.returncode != 0
    assert "/healthz: 503" in result.stdout
    assert "deepseek-r1 logs llamacpp" in result.stdout
    assert failed(deployed) == ["health", "models", "completion", "reasoning", "stream", "cache"]


def test_a_redis_that_died(deployed, play, stack, redis):
    redis.kill()
    redis.wait()
    result = play(**settings_for(stack))
    assert failed(deployed) == ["cache"]
    assert "X-Cache BYPASS" in result.stdout
    assert "cannot reach Redis" in result.stdout


def test_an_engine_open_to_the_world(deployed, play, stack, verify):
    if not verify.own_addresses():
        pytest.skip("this machine has loopback addresses only")
    # The gateway listens everywhere: named as the engine's port it stands for an open engine.
    result = play(**settings_for(stack, verify_closed_ports=[stack.port], gateway_port=1))
    assert "ports_closed" in failed(deployed)
    assert f":{stack.port} are accepted" in result.stdout
