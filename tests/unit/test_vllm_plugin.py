"""vLLM's plugin: what it puts in the place of torch's and vLLM's own."""

import socket
from types import SimpleNamespace

import pytest


@pytest.fixture
def plugin(load_plugin):
    return load_plugin("roles/vllm/files/plugin/r1_vllm.py")


def test_only_the_master_listens_and_only_there(plugin, free_port):
    def store(**given):
        return given

    port = free_port()
    given = plugin.tcp_store(store, host_name="127.0.0.1", port=port, is_master=True, timeout=1)
    with socket.socket(fileno=given.pop("master_listen_fd")) as listening:
        assert listening.getsockname() == ("127.0.0.1", port)
    assert given == {
        "host_name": "127.0.0.1", "port": port, "is_master": True, "timeout": 1, "use_libuv": False,
    }  # fmt: skip
    asked = {"host_name": "127.0.0.1", "port": port, "is_master": False, "use_libuv": True}
    assert plugin.tcp_store(store, **asked) == asked


def test_the_key_is_not_told(plugin):
    told = plugin.without_key(lambda args: dict(args), {"api_key": ["secret"], "port": 1})
    assert told == {"port": 1}


def test_it_is_put_in_once(plugin):
    module = SimpleNamespace(f=lambda x: [x])
    for _ in range(2):
        plugin.wrap(module, "f", lambda found, x: found(x) * 2)
    assert module.f(1) == [1, 1]
