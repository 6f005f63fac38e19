"""Which TCP ports of a host can be reached from this machine."""

import errno
import selectors
import socket
import time

BATCH = 1000


def open_ports(address: str, ports=range(1, 65536), patience: float = 1.0) -> set[int]:
    """Ports that accept a connection; `patience` seconds are given to those that say nothing."""
    ports = list(ports)
    found = set()
    for start in range(0, len(ports), BATCH):
        found |= _batch(address, ports[start : start + BATCH], patience)
    return found


def _batch(address: str, ports: list[int], patience: float) -> set[int]:
    found = set()
    with selectors.DefaultSelector() as selector:
        for port in ports:
            probe = socket.socket()
            probe.setblocking(False)
            said = probe.connect_ex((address, port))
            if said == errno.EINPROGRESS:
                selector.register(probe, selectors.EVENT_WRITE, port)
                continue
            if said == 0:
                found.add(port)
            probe.close()
        deadline = time.monotonic() + patience
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(deadline - time.monotonic()):
                if not key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    found.add(key.data)
                selector.unregister(key.fileobj)
                key.fileobj.close()
        for key in list(selector.get_map().values()):
            key.fileobj.close()
    return found
