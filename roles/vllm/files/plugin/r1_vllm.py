"""A plugin of vLLM for what no flag can tell it: to keep a port and a key to itself.

Torch's rendezvous: vLLM says tcp://127.0.0.1:PORT (VLLM_HOST_IP), but torch's TCPStore binds to
all addresses of the host, and who reaches it may write into it. Its argument for a socket that
listens already is the way out; vLLM itself uses it elsewhere.

The log: at its start vLLM's server writes all that it was told into its log, the key included.
"""

import functools
import importlib
import socket
import sys


def register():
    rendezvous = importlib.import_module("torch.distributed.rendezvous")
    wrap(rendezvous, "TCPStore", tcp_store)
    if utils := sys.modules.get("vllm.entrypoints.serve.utils.api_utils"):  # only the server's
        wrap(utils, "get_non_default_args", without_key)


def wrap(module, name, replacement):
    """Put replacement(what was there, ...) in its place, once."""
    found = getattr(module, name)
    if not isinstance(found, functools.partial):
        setattr(module, name, functools.partial(replacement, found))


def tcp_store(store, *, host_name, port, is_master=False, **more):
    if is_master:
        listening = socket.create_server((host_name, port), backlog=512)
        # Only torch's older server takes a socket.
        more |= {"master_listen_fd": listening.detach(), "use_libuv": False}
    return store(host_name=host_name, port=port, is_master=is_master, **more)


def without_key(found, args):
    return {name: value for name, value in found(args).items() if name != "api_key"}
