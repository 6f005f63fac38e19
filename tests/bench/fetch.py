#!/usr/bin/env python3
"""Time our fetch against the hubs' own command lines and curl, from loopback.

  .venv-test/bin/python tests/bench/fetch.py [--mib 512] [--files 4] [--connection-mb-s 0]
      [--rounds 3] [--folder /var/tmp]

One stand-in hub in a process of its own serves the same random bytes to all, over each connection
at most as fast as told. The ways take turns, each into a fresh folder, after a first fetch of one
small file that makes the clients' environments. Prints Markdown.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tests/model"))
from hub import Hub, digest  # noqa: E402 - it lies in another folder

MODULE = REPO / "roles/model/library/model_files.py"
VENVS = REPO / ".cache/hub-venv/hub"
ENDPOINTS = {"huggingface": "huggingface_endpoint", "modelscope": "modelscope_endpoint"}
PLAIN = {"huggingface": "hf download", "modelscope": "modelscope download", "http": "curl"}


def made_files(size: int, count: int) -> dict[str, bytes]:
    """Each file is larger than the one before: 1/10, 2/10, 3/10 and 4/10 of four."""
    dice, files = random.Random(1), {}
    for number in range(1, count + 1):
        share = 2 * number / count / (count + 1)
        name = f"a-{number}-of-{count}.safetensors"
        files[name] = b"".join(dice.randbytes(1 << 20) for _ in range(int(size * share) >> 20))
    return files


def serve(files: dict[str, bytes], rate: float, pipe):
    hub = Hub(files)
    hub.rate = rate
    for body in files.values():
        for kind, head in (("sha1", b""), ("sha256", b""), ("sha1", b"blob %d\0" % len(body))):
            digest(kind, body, head)
    pipe.send(hub.url)
    pipe.recv()


def ours(kind: str, url: str, folder: Path, files: dict[str, dict]):
    download = {
        "source": kind,
        "repository": f"{url}/folder" if kind == "http" else "o/n",
        "revision": None,
        "files": list(files.values()),
    }
    values = {
        "root": str(folder),
        "model": "m",
        "precision": "q",
        "download": download,
        "hub_venv": str(VENVS),
        "client": (REPO / "roles/model/files/fetch.py").read_text(),
        "requirements": {
            name: (REPO / f"roles/model/files/requirements-{name}.txt").read_text()
            for name in ENDPOINTS
        },
    }
    if kind in ENDPOINTS:
        values[ENDPOINTS[kind]] = url
    done = subprocess.run(
        [sys.executable, MODULE], input=json.dumps({"ANSIBLE_MODULE_ARGS": values}),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    answer = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
    if not answer.get("changed"):
        raise SystemExit(f"ours, {kind}: {answer.get('msg') or done.stdout + done.stderr}")
    return folder / "m/q"


def plain(kind: str, url: str, folder: Path, files: dict[str, dict]):
    environment = dict(
        os.environ,
        HF_ENDPOINT=url,
        HF_HOME=str(folder / "home"),
        HF_HUB_DISABLE_TELEMETRY="1",
        MODELSCOPE_ENDPOINT=url,
        MODELSCOPE_CACHE=str(folder / "home"),
        MODELSCOPE_HOME=str(folder / "home"),
    )
    target = folder / "m"
    command = {
        "huggingface": [VENVS / "huggingface/bin/hf", "download", "o/n", "--local-dir", target],
        "modelscope": [
            *(VENVS / "modelscope/bin/modelscope", "download", "--model", "o/n"),
            *("--local_dir", target),
        ],
        "http": [
            *("curl", "--silent", "--show-error", "--fail", "--create-dirs", "--parallel"),
            *(x for path in files for x in ("-o", target / path, f"{url}/folder/{path}")),
        ],
    }[kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{PLAIN[kind]}: {(done.stdout + done.stderr)[-2000:]}")
    return target


def timed(way, kind: str, url: str, root: Path, files: dict[str, dict]) -> float:
    folder = Path(tempfile.mkdtemp(dir=root))
    os.sync()  # what the one before has left to be written is not this one's
    began = time.monotonic()
    target = way(kind, url, folder, files)
    seconds = time.monotonic() - began
    for path, file in files.items():
        with (target / path).open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != file["sha256"]:
                raise SystemExit(f"{way.__name__}, {kind}: {path} is wrong")
    shutil.rmtree(folder)
    return seconds


def curl_alone(url: str, files: dict[str, dict]) -> float:
    """The hub's own speed: nothing is written."""
    began = time.monotonic()
    for path in files:
        subprocess.run(["curl", "-sf", "-o", "/dev/null", f"{url}/folder/{path}"], check=True)
    return time.monotonic() - began


def started(files: dict[str, bytes], rate: float = 0):
    pipe, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=serve, args=(files, rate, theirs), daemon=True)
    process.start()
    return process, pipe, pipe.recv()


def listed(files: dict[str, bytes]) -> dict[str, dict]:
    return {
        path: {"path": path, "bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        for path, body in files.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--connection-mb-s", type=float, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    asked = parser.parse_args()
    small = {"a.safetensors": b"0" * 1000}
    large = made_files(asked.mib << 20, asked.files)
    took = {(kind, way): [] for kind in PLAIN for way in (ours, plain)}
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        process, pipe, url = started(small)
        fixed = {pair: timed(pair[1], pair[0], url, Path(name), listed(small)) for pair in took}
        fixed = {pair: timed(pair[1], pair[0], url, Path(name), listed(small)) for pair in took}
        pipe.send("end")
        process.join()
        process, pipe, url = started(large, asked.connection_mb_s * 1e6)
        files = listed(large)
        size = sum(file["bytes"] for file in files.values())
        bare = statistics.median(curl_alone(url, files) for _ in range(asked.rounds))
        print(f"{size / 1e6:.0f} MB in {len(files)} files, {os.cpu_count()} cores; ", end="")
        print(f"the hub gives curl {size / bare / 1e6:.0f} MB/s into /dev/null\n", flush=True)
        for _ in range(asked.rounds):
            for (kind, way), found in took.items():
                found.append(timed(way, kind, url, Path(name), files))
                print(f"{kind} {way.__name__}: {found[-1]:.1f} s", file=sys.stderr, flush=True)
        pipe.send("end")
        process.join()
    print("| from | ours | plain | ours / plain | of a file of 1 kB: ours, plain |")
    print("|---|---|---|---|---|")
    for kind, command in PLAIN.items():
        mine, theirs = (statistics.median(took[kind, way]) for way in (ours, plain))
        speeds = [f"{x:.1f} s, {size / x / 1e6:.0f} MB/s" for x in (mine, theirs)]
        starts = ", ".join(f"{fixed[kind, way]:.1f} s" for way in (ours, plain))
        print(
            f"| {kind} | {speeds[0]} | `{command}` {speeds[1]} | {mine / theirs:.2f} | {starts} |"
        )


if __name__ == "__main__":
    main()
