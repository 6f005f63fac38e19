#!/usr/bin/env python3
"""Fetch a model again and again from hubs that misbehave, and look at what is left behind.

  .venv-test/bin/python tests/bench/fetch_faults.py [--runs 200] [--seed 1]

Each run draws its sources, files and faults from its seed; the clients are the real ones, the hubs
are stand-ins on loopback. After every run: nothing but a whole, right model stands under the final
name, and the module succeeded or named source, file or address, and fix. Then the hubs behave: one
more run must heal, a second change nothing. Bytes are counted at the hubs over all of it, at most
1.05 x the model. Not counted: answers with wrong bytes, which have to be fetched again, and 2 MiB
for each time a client was killed or its disk was full, which is what was still in the air.
Prints a table and ends with 1 when any run broke a rule.
"""

import argparse
import collections
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tests/model"))
from hub import Hub  # noqa: E402 - it lies in another folder

MODULE = REPO / "roles/model/library/model_files.py"
RATE = 20_000_000  # bytes per second: what is sent and not yet read stays small
IN_THE_AIR = 2 << 20
PIECES = (1 << 28, 1 << 20)  # each file at once, or in several pieces
DISK = 40 << 20
HUB_FILES = {"config.json": 900, "a-1-of-2.safetensors": 3_000_000, "a-2-of-2.safetensors": 5e6}
GGUF = {"m.gguf": 8_000_000}
ENDPOINTS = {
    "huggingface": "huggingface_endpoint",
    "modelscope": "modelscope_endpoint",
    "ollama": "ollama_registry",
}
FIXES = ("Check ", "Correct ", " set ", "Free some space", "use another one")


@dataclass
class Case:
    """One run: what is fetched, from where, and what goes wrong."""

    seed: int
    folder: Path
    dice: random.Random = field(init=False)
    hubs: dict[str, Hub] = field(default_factory=dict)
    endpoints: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen] = field(default_factory=list)
    at_once: int = 1
    killed: bool = False
    in_the_air: int = 0
    ballast: Path | None = None

    def __post_init__(self):
        self.dice = random.Random(self.seed)
        sizes = self.dice.choice([HUB_FILES, GGUF])
        self.files = {name: self.dice.randbytes(int(size)) for name, size in sizes.items()}
        kinds = [kind for kind in ENDPOINTS if sizes is GGUF or kind != "ollama"]
        self.sources = self.dice.sample(kinds, 2)
        self.pinned = self.dice.random() < 0.5
        self.total = sum(map(len, self.files.values()))
        for kind in self.sources:
            self.hubs[kind] = Hub(self.files)
            self.hubs[kind].rate = RATE
            self.endpoints[ENDPOINTS[kind]] = self.hubs[kind].url
        self.first = self.hubs[self.sources[0]]

    def somewhere(self) -> int:
        return self.dice.randrange(1, self.total)

    def download(self) -> dict:
        first, *others = [self.source(kind) for kind in self.sources]
        return {**first, "alternatives": others}

    def source(self, kind: str) -> dict:
        library = kind == "ollama"
        files = [
            {
                "path": path,
                "bytes": len(body) if self.pinned else None,
                "sha256": hashlib.sha256(body).hexdigest() if self.pinned else None,
            }
            for path, body in self.files.items()
        ]
        return {
            "source": kind,
            "repository": "n" if library else "o/n",
            "revision": "tag" if library else None,
            "files": files,
        }

    def start(self, **more) -> subprocess.Popen:
        values = {
            "root": str(self.folder),
            "model": "m",
            "precision": "q",
            "download": self.download(),
            "piece_bytes": PIECES[self.seed % len(PIECES)],
            "hub_venv": str(REPO / ".cache/hub-venv/hub"),
            "client": (REPO / "roles/model/files/fetch.py").read_text(),
            "requirements": {
                name: (REPO / f"roles/model/files/requirements-{name}.txt").read_text()
                for name in ("huggingface", "modelscope")
            },
            **self.endpoints,
            **more,
        }
        process = subprocess.Popen(
            [sys.executable, MODULE], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": values}))
        process.stdin.close()
        self.processes.append(process)
        return process

    def kill(self):
        self.killed, self.in_the_air = True, self.in_the_air + IN_THE_AIR
        self.processes[-1].kill()

    def fill_disk(self):
        self.in_the_air += IN_THE_AIR
        self.ballast = self.folder / "ballast"
        with self.ballast.open("wb") as stream:
            try:
                while True:
                    os.write(stream.fileno(), bytes(4096))
            except OSError:
                return

    def behave(self):
        if self.ballast:
            self.ballast.unlink()
        for kind, hub in self.hubs.items():
            hub.behave()
            self.endpoints[ENDPOINTS[kind]] = hub.url

    def stop(self):
        for hub in self.hubs.values():
            hub.stop()
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()


# The faults. Each befalls the first source; the second one is what a deploy would turn to.


def cut(case: Case):
    case.first.cut_after = [case.somewhere() // 2 for _ in range(case.dice.randint(1, 4))]


def wrong_bytes(case: Case):
    def flip(body):
        at = case.dice.randrange(len(body))
        return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]

    case.first.spoil = [flip] * case.dice.randint(1, 4)


def wrong_length(case: Case):
    surplus = case.dice.choice([-1, 1]) * case.dice.randint(1, 500)
    case.first.spoil = [
        lambda body: body[:surplus] if surplus < 0 else body + bytes(surplus)
    ] * case.dice.randint(1, 4)


def busy(case: Case):
    statuses = [429, 500, 502, 503, 504]
    case.first.refuse = case.dice.choices(statuses, k=case.dice.randint(1, 6))
    case.first.retry_after = case.dice.choice([None, 0, 1, 3600])


def dead(case: Case):
    case.first.dead_after = case.somewhere()


def no_such_host(case: Case):
    case.endpoints[ENDPOINTS[case.sources[0]]] = "http://hub.invalid"


def drip(case: Case):
    case.first.drip_after = [
        case.somewhere() // 2 if case.dice.random() < 0.5 else None for _ in range(4)
    ]


def killed(case: Case):
    case.first.hooks.append((case.somewhere(), case.kill))


def two_at_once(case: Case):
    case.at_once = 2


def disk_full(case: Case):
    case.first.hooks.append((case.somewhere(), case.fill_disk))


FAULTS = [
    cut, wrong_bytes, wrong_length, busy, dead, no_such_host, drip, killed, two_at_once, disk_full
]  # fmt: skip


class Disk:
    """A small file system, when this user may mount one."""

    def __init__(self, folder: Path, wanted: bool):
        self.folder, self.wanted, self.mounted = folder, wanted, False

    def __enter__(self) -> bool:
        if self.wanted:
            asked = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", self.folder]
            self.mounted = not subprocess.run(asked, capture_output=True, check=False).returncode
        return self.mounted

    def __exit__(self, *_):
        if self.mounted:
            subprocess.run(["umount", self.folder], check=True)


def left_behind(case: Case) -> list[str]:
    """What stands under the final name and should not."""
    home = case.folder / "m"
    shown = sorted(path.name for path in home.glob("*") if not path.name.startswith("."))
    if not shown:
        return []
    if shown != ["q"]:
        return [f"visible: {shown}"]
    found = {path.name: path.read_bytes() for path in (home / "q").iterdir()}
    if found.pop(".complete", None) is None:
        return ["no mark of completion"]
    wrong = sorted(name for name in case.files if found.get(name) != case.files[name])
    return [f"bad or missing {wrong}"] if wrong or len(found) != len(case.files) else []


def answer_of(process: subprocess.Popen) -> tuple[dict, str]:
    out = process.stdout.read()
    process.wait()
    try:
        return json.loads(out.strip().splitlines()[-1]), out
    except (ValueError, IndexError):
        return {}, out


def silent(case: Case, answer: dict, out: str) -> list[str]:
    """What a refusal fails to say."""
    if not answer:
        return [] if case.killed else [f"no answer: {out[-600:]}"]
    if not answer.get("failed"):
        return []
    text = answer.get("msg", "")
    if case.ballast and "The disk of" in text and "Free some space" in text:
        return []
    named = any(f"{kind} " in text for kind in case.sources)
    where = any(name in text for name in (*case.files, *case.endpoints.values()))
    if named and where and any(fix in text for fix in FIXES):
        return []
    return [f"the refusal does not say enough: {text or out[-600:]}"]


@dataclass
class Outcome:
    seed: int
    faults: list[str]
    ended: str
    ratio: float
    excused: bool
    seconds: float
    problems: list[str]

    def __str__(self):
        text = f"{self.seed:>6}  {'+'.join(self.faults):<28} {self.ended:<8} "
        text += f"{self.ratio:5.3f} {self.seconds:6.1f} s"
        return "\n        ".join([text, *self.problems])


def run_case(seed: int, root: Path) -> Outcome:
    folder = Path(tempfile.mkdtemp(dir=root))
    case = Case(seed, folder)
    faults = case.dice.sample(FAULTS, case.dice.choice([1, 1, 2]))
    began = time.monotonic()
    with Disk(folder, disk_full in faults) as small:
        faults = [fault for fault in faults if fault is not disk_full or small]
        try:
            for fault in faults:
                fault(case)
            ended, problems = under_faults(case)
            problems += healed(case)
            ratio, excused, excess = fetched(case)
        finally:
            case.stop()
    seconds = time.monotonic() - began
    names = [fault.__name__ for fault in faults] or ["none"]
    return Outcome(seed, names, ended, ratio, excused, seconds, problems + excess)


def under_faults(case: Case) -> tuple[str, list[str]]:
    running = [case.start(stall_seconds=4) for _ in range(case.at_once)]
    answers = [answer_of(process) for process in running]
    problems = left_behind(case)
    if case.killed:
        answers.append(answer_of(case.start(stall_seconds=4)))
        problems += left_behind(case)
    problems += [text for given in answers for text in silent(case, *given)]
    last = answers[-1][0]
    right = bool(last) and not last.get("failed")
    if right and not (case.folder / "m/q/.complete").exists():
        problems.append("said it is there, and it is not")
    return "right" if right else "refused", problems


def healed(case: Case) -> list[str]:
    case.behave()
    problems = []
    for changed in (None, False):
        answer, out = answer_of(case.start())
        if not answer or answer.get("failed"):
            return [f"not healed: {answer.get('msg') or out[-600:]}"]
        if changed is not None and answer["changed"]:
            problems.append("a second run without faults changed something")
    if not (case.folder / "m/q").exists():
        problems.append("no model after the healing run")
    rest = {path.name for path in (case.folder / "m").iterdir()} - {"q", ".pins.json"}
    return problems + left_behind(case) + ([f"left over: {sorted(rest)}"] if rest else [])


def fetched(case: Case) -> tuple[float, bool, list[str]]:
    """Bytes fetched in units of the model's size, whether any are excused, and what is too much."""
    sent = sum(hub.sent for hub in case.hubs.values())
    excused = sum(hub.spoilt for hub in case.hubs.values()) + case.in_the_air
    too_much = sent > 1.05 * case.total + excused
    text = f"fetched {sent} bytes for {case.total}, {excused} of them excused"
    return sent / case.total, excused > 0, [text] if too_much else []


def table(outcomes: list[Outcome]) -> str:
    rows = collections.defaultdict(list)
    for outcome in outcomes:
        for fault in outcome.faults:
            rows[fault].append(outcome)
    lines = [f"{'fault':<14}{'runs':>6}{'right':>7}{'refused':>9}{'most fetched':>14}{'broken':>8}"]
    for fault, found in sorted(rows.items()):
        right = sum(outcome.ended == "right" for outcome in found)
        most = max((outcome.ratio for outcome in found if not outcome.excused), default=None)
        shown = f"{most:.3f}x" if most else "-"
        broken = sum(bool(outcome.problems) for outcome in found)
        lines.append(
            f"{fault:<14}{len(found):>6}{right:>7}{len(found) - right:>9}{shown:>14}{broken:>8}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    outcomes = []
    with tempfile.TemporaryDirectory() as root:
        for seed in range(asked.seed, asked.seed + asked.runs):
            outcomes.append(run_case(seed, Path(root)))
            print(outcomes[-1], flush=True)
    broken = sum(bool(outcome.problems) for outcome in outcomes)
    print(f"\n{table(outcomes)}\n(most fetched: of the runs in which every byte counts)")
    print(f"\n{len(outcomes)} runs, {broken} of them broke a rule")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
