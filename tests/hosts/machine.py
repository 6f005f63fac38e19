"""One test host: a container that stands for a machine, with what a test asks of a machine."""

import contextlib
import io
import json
import os
import shlex
import subprocess
import tarfile
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from . import clone, debian, engine, image
from .shell import HostError, run, say

LABEL = "deepseek-r1-test"


@dataclass(frozen=True)
class Result:
    """What a command on a machine did."""

    command: str
    rc: int
    output: str
    seconds: float

    def ok(self) -> "Result":
        if self.rc:
            raise AssertionError(
                f"exit {self.rc} after {self.seconds:.1f} s of: {self.command}\n"
                f"{self.output[-6000:]}"
            )
        return self


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    user: str
    command: str


class Machine:
    """A running container of a recipe's image. Use it as a context: it is removed at the end."""

    def __init__(self, recipe: image.Recipe, *options: str):
        engine.ensure()
        self._create(recipe, image.ensure(recipe), *options)
        with self._removed_on_error():
            self._furnish()
            self._power_on()
            self._reach_the_registries()

    def _create(self, recipe: image.Recipe, tag: str, *options: str) -> None:
        self.name = f"{LABEL}-{recipe.name}-{uuid.uuid4().hex[:6]}"
        self.recipe, self.options = recipe, options
        self.environment = debian.environment()
        run("docker", "create", "--name", self.name, "--hostname", recipe.name,
            "--label", LABEL, *recipe.options, *options, tag)  # fmt: skip

    def _furnish(self) -> None:
        """Put files on a new machine's disk before it starts."""

    def _power_on(self) -> None:
        run("docker", "start", self.name)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Return when the machine does what its kind does after a start."""

    @contextlib.contextmanager
    def copies(self):
        """Give a function that makes machines with this one's disk as it is now.

        What a recipe has on a volume (Docker's images and containers) is not on the disk.
        """
        tag = f"{image.REPOSITORY}/snapshot:{uuid.uuid4().hex[:6]}"
        run("docker", "commit", self.name, tag)

        def copy() -> Machine:
            machine = type(self).__new__(type(self))
            machine._create(self.recipe, tag, *self.options)
            with machine._removed_on_error():
                machine._power_on()
            return machine

        try:
            yield copy
        finally:
            run("docker", "rmi", "--force", tag, check=False)

    @contextlib.contextmanager
    def _removed_on_error(self):
        try:
            yield
        except BaseException:
            self.remove()
            raise

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *_) -> None:
        self.remove()

    def remove(self) -> None:
        run("docker", "rm", "--force", "--volumes", self.name, check=False)

    def restart(self) -> None:
        """Power off and on: every process ends, /run is empty, the disk stays."""
        run("docker", "restart", "--time", "0", self.name)
        self.wait_ready()

    @property
    def address(self) -> str:
        return run("docker", "inspect", "--format", "{{.NetworkSettings.IPAddress}}",
                   self.name).strip()  # fmt: skip

    def _reach_the_registries(self) -> None:
        """Give the machine this one's proxy and clock settings for apt, and its authorities."""
        if settings := debian.apt_settings():
            self.write("/etc/apt/apt.conf.d/90this-network", settings)
        known = self.run(f"cat {debian.BUNDLE}").ok().output
        authorities = debian.own_authorities(known)
        for number, pem in enumerate(authorities):
            self.write(f"/usr/local/share/ca-certificates/own-{number}.crt", pem + "\n")
        if authorities:
            self.run("update-ca-certificates").ok()

    # Commands

    def argv(self, command: str, cwd: str = "/root", env: dict[str, str] | None = None):
        """The docker command line that runs a shell command on the machine."""
        given = {**self.environment, **(env or {})}
        options = [part for name, value in given.items() for part in ("--env", f"{name}={value}")]
        return ["docker", "exec", "--workdir", cwd, *options, self.name, "bash", "-c", command]

    def run(self, command: str, *, timeout: float = 600, show: bool = False, **options) -> Result:
        """Run a shell command as root; output and errors come together, in order."""
        start = time.monotonic()
        process = subprocess.Popen(
            self.argv(command, **options), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            output = process.communicate()[0]
            self.kill_tree(command)
            output += f"\n(killed after {timeout} s)"
        result = Result(command, process.returncode, output, time.monotonic() - start)
        if show:
            say(output)
        return result

    def start(self, command: str, log: Path, **options) -> subprocess.Popen:
        """Start a command and return at once; its output goes to `log` on this machine."""
        with log.open("wb") as stream:
            return subprocess.Popen(
                self.argv(command, **options), stdin=subprocess.DEVNULL, stdout=stream,
                stderr=subprocess.STDOUT,
            )  # fmt: skip

    # Files

    def write(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        self._unpack(packed(path, content, mode), "/")

    def read(self, path: str) -> str:
        return self.run(f"cat {shlex.quote(path)}").ok().output

    def json(self, path: str):
        return json.loads(self.read(path))

    def copy(self, source: Path, target: str) -> None:
        run("docker", "cp", source, f"{self.name}:{target}")

    def clone(self, repo: Path, target: str) -> str:
        """Put a clone of the repository there; return what it holds (see clone.make)."""
        with tempfile.TemporaryDirectory() as folder:
            held = clone.make(repo, Path(folder) / "clone")
            self.copy(Path(folder) / "clone", target)
        return held

    def _unpack(self, tar: bytes, target: str) -> None:
        argv = ["docker", "exec", "--interactive", self.name]
        argv += ["tar", "--extract", "--no-same-owner", "--no-overwrite-dir", "-C", target]
        done = subprocess.run(argv, input=tar, capture_output=True, check=False)
        if done.returncode:
            raise HostError(f"cannot write to {self.name}:{target}: {done.stderr.decode()}")

    def listing(self, *roots: str, skip: tuple[str, ...] = ()) -> dict[str, str]:
        """Path -> type, mode, owner, time, size, link target of every file on the machine.

        Left out is what Docker makes anew at each start.
        """
        made = ("/proc", "/sys", "/dev", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf")
        prune = " -o ".join(f"-path {shlex.quote(path)}" for path in (*made, *skip))
        command = (
            f"find {' '.join(roots or ('/',))} \\( {prune} \\)  -prune -o "
            r"-printf '%p\t%y %m %u:%g %T@ %s %l\n'"
        )
        rows = (line.partition("\t") for line in self.run(command).ok().output.splitlines())
        files = {}
        for path, _, facts in rows:
            kind, mode, owner, changed, size, link = facts.split(" ", 5)
            # A folder's time and size follow from its entries, which are listed themselves.
            tail = () if kind == "d" else (changed, size, link)
            files[path] = " ".join((kind, mode, owner, *tail))
        return files

    # Processes and ports

    def processes(self) -> list[Process]:
        """Every process but the first one and its sleep; threads and the dead left out."""
        # -ww: else ps cuts lines at the COLUMNS that dockerd was started with.
        columns = ("-ww", "-eo", "pid,ppid,uid,stat,args")
        rows = run("docker", "top", self.name, *columns).splitlines()[1:]
        accounts = (line.split(":") for line in self.read("/etc/passwd").splitlines())
        users = {account[2]: account[0] for account in accounts}
        found = []
        for row in rows:
            pid, parent, uid, state, command = row.split(None, 4)
            if not state.startswith("Z") and not command.endswith("sleep infinity"):
                found.append(Process(int(pid), int(parent), users.get(uid, uid), command))
        return found

    def listeners(self) -> set[tuple[str, int]]:
        """(address, port) of every listening TCP socket; IPv6's any-address is `::`."""
        found = set()
        for line in self.run("cat /proc/net/tcp /proc/net/tcp6").ok().output.splitlines():
            fields = line.split()
            if len(fields) > 3 and fields[3] == "0A":
                host, port = fields[1].split(":")
                found.add((_address(host), int(port, 16)))
        return found

    def kill(self, *processes: Process, signal: int = 9) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal)

    def kill_tree(self, pattern: str) -> list[Process]:
        """SIGKILL the processes whose command holds `pattern` and all they started, at one moment.

        What has left its parent (a daemon) lives on. Returns what was killed.
        """
        everything = self.processes()
        doomed = [process for process in everything if pattern in process.command]
        for process in doomed:
            doomed += [p for p in everything if p.parent == process.pid and p not in doomed]
        self.kill(*doomed, signal=19)
        self.kill(*doomed)
        return doomed


def packed(path: str, content: str | bytes, mode: int = 0o644, owner: int = 0) -> bytes:
    """A tar archive of one file, to be unpacked at the root."""
    data = content.encode() if isinstance(content, str) else content
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo(path.lstrip("/"))
        entry.size, entry.mode, entry.mtime = len(data), mode, int(time.time())
        entry.uid = entry.gid = owner
        tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _address(text: str) -> str:
    raw = bytes.fromhex(text)
    words = [raw[i : i + 4][::-1] for i in range(0, len(raw), 4)]
    if len(words) == 1:
        return ".".join(map(str, words[0]))
    joined = b"".join(words)
    if joined[:12] == bytes(10) + b"\xff\xff":
        return ".".join(map(str, joined[12:]))
    return {bytes(16): "::", bytes(15) + b"\1": "::1"}.get(joined, joined.hex(":", 2))


def leftovers() -> list[str]:
    """Names of test machines that still exist (of an aborted run, or kept on purpose)."""
    return run("docker", "ps", "--all", "--format", "{{.Names}}", "--filter",
               f"label={LABEL}").split()  # fmt: skip
