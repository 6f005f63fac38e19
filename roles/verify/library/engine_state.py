#!/usr/bin/python
"""What the engine itself says: whether it answers, how far it is, why it stopped, what it has."""

import pwd
import re
import urllib.request
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: engine_state
short_description: What the engine itself says
description:
  - Asks the engine whether it is ready and reads its log for how far it is, for why it stopped and
    for the memory it found. Knows vLLM's words. Changes nothing.
options:
  url:
    description: Where the engine answers the host itself.
    type: str
    required: true
  user:
    description: Name of the user the engine runs as.
    type: str
    required: true
  log:
    description: Command that prints the last lines of the engine's log.
    type: list
    elements: str
    required: true
author: The authors of this project
"""

EXAMPLES = r"""
- name: Ask the engine
  engine_state:
    url: http://127.0.0.1:18000
    user: r1-engine
    log: [deepseek-r1, logs, engine, "400"]
"""

RETURN = r"""
ready:
  description: Whether it answers its health question.
  type: bool
  returned: always
started:
  description: When its oldest process started, in clock ticks since the host did; null without one.
  type: int
  returned: always
progress:
  description: The last step of loading in its log, empty without one.
  type: str
  returned: always
reason:
  description: The last error in its log as C({said, fix}); null without one.
  type: dict
  returned: always
kv_tokens:
  description: Tokens that its KV cache holds; null where it does not tell.
  type: int
  returned: always
weights_bytes:
  description: What loading the weights took by its log; null where it does not tell.
  type: int
  returned: always
"""

# The last of these that a log holds is how far it is; groups go into the words.
PROGRESS = (
    (r"Starting to load model|Loading model from scratch", "loads the weights"),
    (r"checkpoint shards: +\d+% Completed \| (\d+/\d+)", "loads the weights, file {}"),
    (r"Model loading took ([\d.]+ GiB)", "has the weights, {}"),
    (r"Dynamo bytecode transform time|Compiling a graph", "compiles"),
    (r"torch\.compile took ([\d.]+ s)", "has compiled, {}"),
    (r"GPU KV cache size: ([\d,]+ tokens)", "has a KV cache of {}"),
    (r"Capturing CUDA graphs[^:]*: +\d+%\|[^|]*\| (\d+/\d+)", "captures CUDA graphs, {}"),
    (r"Graph capturing finished", "has captured its CUDA graphs"),
    (r"init engine .* took|Starting vLLM (?:API )?server", "is about to open its door"),
)
ERROR = re.compile(r"(?:^|[\s\]])((?:\w+\.)*[A-Z]\w*(?:Error|Exception)): (\S.*)$")
USAGE = re.compile(r"\w+\.py: error: (.+)$")
# Said by a process whose child has said why.
WRAPPERS = re.compile(r"See root cause above|initialization failed|Engine process failed to start")
# What to do about it, by what it said.
FIXES = (
    ("Free memory on device", "other programs hold memory of this GPU (`nvidia-smi`); end them"),
    (
        "out of memory",
        "other programs took memory of this GPU meanwhile (`nvidia-smi`), or the plan is too high "
        "for it; lower max_num_seqs or max_model_len",
    ),
    (
        "KV cache is needed|No available memory for the cache",
        "lower max_model_len, or take away gpu_memory_utilization so that the plan computes the "
        "KV cache",
    ),
    ("compute capability|no kernel image", "this GPU is too old; set another precision or engine"),
    ("NVIDIA driver on your system is too old", "install a newer driver"),
)


def last_start(log):
    """What the log says since vLLM told of its arguments the last time."""
    return log[max(0, log.rfind("non-default args")) :]


def progress(log):
    found = ""
    for line in re.split(r"[\r\n]+", log):
        for pattern, words in PROGRESS:
            if match := re.search(pattern, line):
                found = words.format(*match.groups())
    return found


def reason(log):
    """The last error that is not only about another one, and what to do about it."""
    lines = re.split(r"[\r\n]+", log)
    for index in range(len(lines) - 1, -1, -1):
        match = ERROR.search(lines[index]) or USAGE.search(lines[index])
        if not match or WRAPPERS.search(match.group(0)):
            continue
        said = match.group(match.lastindex)
        if re.search(r"validation errors? for", said) and index + 2 < len(lines):
            said = re.sub(r"^.*?\(\w+ pid=\d+\) *", "", lines[index + 1]).strip() or said
            said = re.sub(r" \[type=.*", "", said).removeprefix("Value error, ")
        fix = next((fix for words, fix in FIXES if re.search(words, said)), "")
        return {"said": said[:600].rstrip(". "), "fix": fix}
    return None


def kv_tokens(metrics):
    """From vLLM's Prometheus page: blocks and tokens in each, as labels."""
    line = re.search(r"^vllm:cache_config_info\{(.*)\}", metrics, re.MULTILINE)
    labels = dict(re.findall(r'(\w+)="([^"]*)"', line.group(1))) if line else {}
    numbers = [labels.get(name, "") for name in ("block_size", "num_gpu_blocks")]
    if not all(number.isdigit() for number in numbers):
        return None
    return int(numbers[0]) * int(numbers[1])


def weights_bytes(log):
    found = re.findall(r"Model loading took ([\d.]+) GiB", log)
    return int(float(found[-1]) * 2**30) if found else None


def started(user):
    """The 22nd field of /proc/PID/stat; the name before it may hold spaces and brackets. As in
    engine_memory, containers count only where nothing of the user is outside them."""
    times = {}
    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        return None
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.stat().st_uid == uid:
                time = int((folder / "stat").read_text().rpartition(")")[2].split()[19])
                times.setdefault(namespace(folder), []).append(time)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
    outside = times.get(namespace(Path("/proc/self")))
    return min(outside or [time for some in times.values() for time in some], default=None)


def namespace(folder):
    try:
        return (folder / "ns/pid").readlink()
    except OSError:  # in a container even root may not look
        return None


def page(url, path):
    """The text of a page of the engine, None without one."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{url}/{path}", timeout=5) as answer:
            return answer.read().decode(errors="replace")
    except OSError:
        return None


def main():
    module = AnsibleModule(
        {
            "url": {"type": "str", "required": True},
            "user": {"type": "str", "required": True},
            "log": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    url = module.params["url"]
    _status, out, error = module.run_command(module.params["log"], errors="replace")
    log = last_start(out + error)
    module.exit_json(
        changed=False,
        ready=page(url, "health") is not None,
        started=started(module.params["user"]),
        progress=progress(log),
        reason=reason(log),
        kv_tokens=kv_tokens(page(url, "metrics") or ""),
        weights_bytes=weights_bytes(log),
    )


if __name__ == "__main__":
    main()
