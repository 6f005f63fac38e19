"""A plugin of vLLM: torch's rendezvous listens where it was told to, not on every address.

vLLM says tcp://127.0.0.1:PORT (VLLM_HOST_IP), but torch's TCPStore binds to all addresses of the
host, and who reaches it may write into it. Its argument for a socket that listens already is the
way out; vLLM itself uses it elsewhere.
"""

import functools
import importlib
import socket


def register():
    rendezvous = importlib.import_module("torch.distributed.rendezvous")
    if not isinstance(rendezvous.TCPStore, functools.partial):
        rendezvous.TCPStore = functools.partial(tcp_store, rendezvous.TCPStore)


def tcp_store(store, *, host_name, port, is_master=False, **more):
    if is_master:
        listening = socket.create_server((host_name, port), backlog=512)
        # Only torch's older server takes a socket.
        more |= {"master_listen_fd": listening.detach(), "use_libuv": False}
    return store(host_name=host_name, port=port, is_master=is_master, **more)
