"""Check the settings of every role at once; the documentation is in library/check_settings.py."""

from __future__ import annotations

import difflib
import fnmatch
import ipaddress
import re
import stat
from pathlib import Path

import yaml
from ansible import constants as C
from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase

try:  # only says where a value was set; without it the messages are shorter
    from ansible._internal._datatag._tags import Origin
except ImportError:
    Origin = None

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MAGIC = C.INTERNAL_STATIC_VARS | {"environment", "omit", "vars", "discovered_interpreter_python"}
INTERNAL_PREFIXES = ("ansible_", "_")
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "dict": "a mapping",
    "list": "a list",
    "path": "a path",
    "str": "text",
}

AUTO_OR_COUNT = {
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "tensor_parallel_size",
    "pipeline_parallel_size",
}
AUTO_OR_FLAG = {"enforce_eager", "secrets_keep_on_host"}
URLS = {
    "modelscope_endpoint",
    "huggingface_endpoint",
    "ollama_registry",
    "nvidia_apt_url",
    "nvidia_toolkit_apt_url",
}
FINGERPRINT = (r"[0-9A-Fa-f]{40}", "is no fingerprint", "give its 40 digits of 0-9 and A-F")
NUMBER_OF_REQUESTS = (
    r"auto|\d+",
    "is neither auto nor a number of requests",
    "give auto, or a whole number of 0 or more",
)
# name: (pattern of the whole value, what is wrong, what to give)
FORMS = {
    "gateway_max_body": (r"\d+[kKmMgG]?", "is not a size", "give a number with k, m or g: 10m"),
    "redis_maxmemory": (
        r"\d+[kKmMgG][bB]",
        "is not a size",
        "give a number with kb, mb or gb: 256mb",
    ),
    "gateway_redis": (
        r"auto|unix:/\S+|[^/\s]+:\d+",
        "is no address of a Redis",
        "give auto, unix:/PATH or ADDRESS:PORT",
    ),
    "nvidia_driver_branch": (
        r"auto|\d{3}(\.\d+){0,2}",
        "is no branch of the driver",
        "give auto, a branch such as 580, or a whole version",
    ),
    "nvidia_apt_key": (
        rf"auto|{FINGERPRINT[0]}",
        FINGERPRINT[1],
        f"{FINGERPRINT[2]}, or auto",
    ),
    "nvidia_toolkit_apt_key": FINGERPRINT,
    "gateway_read_timeout": (r"[1-9]\d*", "is not above 0", "give seconds, 600 or more"),
    "gateway_engine_requests": NUMBER_OF_REQUESTS,
    "gateway_queue": NUMBER_OF_REQUESTS,
    "model_share_port": (
        r"auto|[1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-5]",
        "is neither auto nor a TCP port",
        "give auto, or a number from 1 to 65535",
    ),
    "model_quantize_minutes": (r"[1-9]\d*", "is not above 0", "give minutes, such as 720"),
    "s3_endpoint": (r"(https?://[^\s/]+\S*)?", "is not a URL", "give http://HOST or https://HOST"),
    "s3_region": (r"[a-z0-9-]+", "is no region", "give its name, such as us-east-1"),
    "model_connections": (
        r"[1-9]|[1-5]\d|6[0-4]",
        "is no number of connections",
        "give a whole number from 1 to 64",
    ),
    "model_max_rate_mb_s": (
        r"0|0\.0|0\.[1-9]\d*|[1-9]\d*(\.\d+)?",
        "is no rate of 0.1 MB/s or more",
        "give megabytes a second, or 0 for no limit",
    ),
    "model_max_perplexity_ratio": (
        r"auto|[1-9]\d*(\.\d+)?",
        "is neither auto nor a number of 1 or more",
        "give auto, or how many times as much is allowed: 1.1",
    ),
}
LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent_streams")
MODEL_NAME = re.compile(r"[\w.:/@+-]{1,200}", re.ASCII)
LOOPBACK = re.compile(r"unix:|localhost:|127\.|\[?::1\]?:")
ADDRESSES = {"gateway_address", "gateway_engine_address"}
CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
HOST_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
SECRET_NAME = re.compile(r"key|secret|token|passw", re.IGNORECASE)
PLAIN_PATH = re.compile(r"/[\w.+@=/-]*[\w.+@=-]/?")

GGUF_ENGINES = {"ollama", "llamacpp"}
TENSOR_ENGINES = {"vllm", "sglang"}
NOT_IN_GGUF = {"fp8", "awq", "gptq"}
KV_OF_GGUF = {"auto", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"}
KV_OF_TENSORS = {"auto", "bf16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"}

SECRET_LENGTH = 24
PLACEHOLDER = re.compile(
    r"change.?me|password|passwd|secret|example|placeholder|your.?(api.?)?key|test.?key|1234567"
    r"|x{5,}|^(sk-)?x+$|<.*>|\{\{.*\}\}",
    re.IGNORECASE,
)


def show(value) -> str:
    if type(value).__name__ == "EncryptedString":
        return "(encrypted)"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 120 else text[:117] + "..."


def problem(name, value, what, fix) -> str:
    return f"{name}: value {value} {what}; fix: {fix}"


def nearest(name, known) -> str | None:
    return next(iter(difflib.get_close_matches(str(name), sorted(known), n=1, cutoff=0.6)), None)


def load_roles(roles: Path) -> tuple[dict, set]:
    """All documented settings of the project, and the names its roles define in vars."""
    specs, names = {}, set()
    paths = roles.glob("*/meta/argument_specs.yml")
    for path in sorted(paths, key=lambda path: (path.parts[-3] != "settings", path)):
        entries = yaml.load(path.read_text(encoding="utf-8"), Loader)["argument_specs"]
        for entry in entries.values():
            options = entry.get("options") or {}
            # What is required is handed over by another role, and no setting.
            specs.update({k: option for k, option in options.items() if not option.get("required")})
            names.update(options.keys() - specs.keys())
    for path in roles.glob("*/*/*.yml"):
        if path.parent.name in ("vars", "defaults"):
            names.update(re.findall(r"^(\w+):", path.read_text(encoding="utf-8"), re.MULTILINE))
    return specs, names


def unknown_names(names, documented, internal, ignore) -> list[tuple[str, str | None]]:
    """Names that no role knows, each with the nearest setting."""
    return [
        (name, nearest(name, documented))
        for name in sorted(names)
        if name not in documented
        and name not in internal
        and name not in MAGIC
        and not name.startswith(INTERNAL_PREFIXES)
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignore)
    ]


def check_value(name, value, spec) -> tuple[str, str] | None:
    """What is wrong with one value, as (what, fix), by its spec and by what its name means."""
    kind, choices = spec.get("type", "str"), spec.get("choices")
    if kind in ("list", "dict") and isinstance(value, str):
        return (
            f"is text, not {KINDS[kind]}",
            f"write it in the inventory, or as JSON: -e '{{\"{name}\": ...}}'",
        )
    if value is False and "off" in (choices or ()):
        return None  # YAML reads a bare `off` as false
    if choices and kind == "str" and str(value) not in choices:
        close = nearest(value, choices)
        return (
            "is not one of its choices",
            (f"did you mean {close}? " if close else "") + "use one of " + ", ".join(choices),
        )
    errors = ArgumentSpecValidator({name: spec}).validate({name: value}).error_messages
    if errors:
        return f"is not valid ({'; '.join(errors)})", f"give {KINDS.get(kind, kind)}"
    return check_range(name, value, kind)


def check_range(name, value, kind) -> tuple[str, str] | None:
    if kind == "int" and name.endswith("_port") and not 1 <= int(value) <= 65535:
        return "is not a TCP port", "give a number from 1 to 65535"
    if name in AUTO_OR_COUNT and str(value) != "auto":
        if not re.fullmatch(r"[1-9]\d*", str(value)):
            return "is neither auto nor a whole number above 0", "give auto or a number above 0"
    elif name == "gpu_memory_utilization" and str(value) != "auto":
        if not re.fullmatch(r"\d*\.?\d+", str(value)) or not 0.05 <= float(value) <= 0.99:
            return "is neither auto nor a share", "give auto, or a share from 0.05 to 0.99"
    elif name in AUTO_OR_FLAG and str(value).lower() not in ("auto", "true", "false"):
        return "is neither auto nor a truth value", "give auto, true or false"
    elif name in URLS and not re.fullmatch(r"https?://[^\s/]+\S*", str(value)):
        return "is not a URL", "give http://HOST or https://HOST"
    elif name == "data_path" and not PLAIN_PATH.fullmatch(str(value)):
        return (
            "is not a folder this project can have for itself",
            "give an absolute path below /, of letters, digits and . _ + @ = -",
        )
    elif name == "bundle" and not re.fullmatch(r"(/.*)?", str(value)):
        return "is not an absolute path", "give the whole path of the bundle's folder"
    elif name in FORMS:
        pattern, what, fix = FORMS[name]
        if not re.fullmatch(pattern, str(value)):
            return what, fix
    elif name in ADDRESSES:
        if not is_address(value, ipaddress.ip_address):
            return "is not an IP address", "give one, such as 127.0.0.1, 0.0.0.0 or ::"
    elif name == "gateway_metrics_allow":
        if not all(is_address(network, ipaddress.ip_network) for network in value):
            return "holds more than networks", "give addresses or networks: [10.0.0.0/8]"
    elif name == "api_keys":
        return check_clients(value)
    elif name == "gateway_limits":
        return check_limits(value)
    elif name == "gateway_clients":
        return check_own_limits(value)
    elif name == "plan_hardware":
        return check_hardware(value)
    elif name == "gateway_upstreams":
        return check_upstreams(value)
    elif name == "gateway_cloud":
        return check_cloud(value) if value else None
    return None


def is_address(value, kind) -> bool:
    try:
        return bool(kind(str(value)))
    except ValueError:
        return False


def check_clients(clients) -> tuple[str, str] | None:
    if not clients:
        return "names no client", "name at least one: [default]"
    if len(set(clients)) != len(clients):
        return "names a client twice", "name each client once"
    for client in clients:
        if not CLIENT_NAME.fullmatch(str(client)):
            return f"holds the name {show(client)}", "use letters, digits, - and _, at most 64"
    return None


def check_limits(limits, more=()) -> tuple[str, str] | None:
    """What a client may; more: members that are allowed besides."""
    known = (*LIMITS, "models", *more)
    for member, value in limits.items():
        if member not in known:
            close = nearest(member, known)
            fix = f"did you mean {close}? " if close else ""
            return f"has the unknown member {show(member)}", fix + "use " + ", ".join(known)
        if member in LIMITS and (type(value) is not int or value < 0):
            return f"has {member} {show(value)}", "give a whole number, 0 for no limit"
        if member == "cache" and not isinstance(value, bool):
            return f"has cache {show(value)}", "give true or false"
        if member == "models" and not (
            isinstance(value, list) and all(MODEL_NAME.fullmatch(str(name)) for name in value)
        ):
            return f"has models {show(value)}", "give a list of names as requests use them"
    return None


def check_own_limits(clients) -> tuple[str, str] | None:
    for name, limits in clients.items():
        if not isinstance(limits, dict):
            return f"has {show(limits)} for {name}", f"give a mapping: {{{name}: {{cache: false}}}}"
        wrong = check_limits(limits, ("cache",))
        if wrong:
            return f"{wrong[0]} for {name}", wrong[1]
    return None


def check_hardware(hardware) -> tuple[str, str] | None:
    sizes = [(key, value) for key, value in hardware.items() if key != "gpus"]
    for gpu in hardware.get("gpus") or []:
        sizes += [("a card's " + key, value) for key, value in gpu.items() if key == "memory_mib"]
    for key, size in sizes:
        if float(size) <= 0:
            return f"has {key} {size}", f"give {key} above 0"
    return None


def check_upstreams(upstreams) -> tuple[str, str] | None:
    names = [str(one["name"]) for one in upstreams]
    for one, name in zip(upstreams, names, strict=True):
        address = str(one["address"])
        if not CLIENT_NAME.fullmatch(name) or name in ("engine", "cloud"):
            return f"holds the name {show(name)}", "use letters, digits, - and _; not engine, cloud"
        if names.count(name) > 1:
            return f"holds the name {name} twice", "name each upstream once"
        if not HOST_NAME.fullmatch(address):
            return (
                f"has for {name} the address {show(address)}",
                "give an IPv4 address or a name, without http:// and port",
            )
        if not 1 <= int(one["port"]) <= 65535:
            return f"has for {name} the port {one['port']}", "give a number from 1 to 65535"
        if "key" in one and not str(one["key"] or ""):
            return f"has for {name} an empty key", "give its key, or leave `key` out"
        if not str(one.get("health", "/")).startswith("/"):
            return f"has for {name} the health {show(one['health'])}", "give a path: /health"
        for flag in ("tls", "drain"):
            if not isinstance(one.get(flag, False), bool):
                return f"has for {name} text as {flag}", "write true or false, without quotes"
        if one.get("tls") and is_address(address, ipaddress.ip_address):
            return (
                f"has for {name} tls and an IP address",
                "give the name in its certificate as address",
            )
    return None


def check_cloud(cloud) -> tuple[str, str] | None:
    url = r"https://[A-Za-z0-9.-]+(:\d+)?(/[\w./-]*)?"
    if not re.fullmatch(url, str(cloud.get("base_url", ""))):
        return "has no base_url of https", "give base_url, such as https://api.deepseek.com/v1"
    if not str(cloud.get("key") or ""):
        return "has no key", "give key, from the vault"
    models = cloud.get("models") or {}
    if not models or not all(isinstance(name, str) and name for name in models.values()):
        return (
            "names no model",
            "give models, a name there for each here: {deepseek-r1-14b: deepseek-reasoner}",
        )
    if not int(cloud.get("tokens_per_day") or 0) > 0:
        return (
            "has no budget",
            "give tokens_per_day, the most tokens of prompts and answers in a day",
        )
    if "first_byte_seconds" in cloud and not int(cloud["first_byte_seconds"]) > 0:
        return "has first_byte_seconds of 0 or less", "give seconds, or leave it out for 30"
    return None


def contradictions(settings: dict, host: str) -> list[str]:
    """Values that are right alone and wrong together."""
    found = []
    value = settings.get

    def clash(name, what, fix):
        found.append(problem(name, show(value(name)), what, fix))

    engine, precision, kv_type = value("engine"), value("precision"), value("kv_cache_dtype")
    if engine in GGUF_ENGINES:
        if precision in NOT_IN_GGUF:
            clash(
                "precision",
                f"cannot be read by engine {engine}, which reads GGUF files",
                "use auto, q4_k_m, q5_k_m or q8_0, or engine vllm",
            )
        if kv_type not in KV_OF_GGUF:
            clash(
                "kv_cache_dtype", f"is not known to engine {engine}", "use auto, f16, q8_0 or q4_0"
            )
        if str(value("pipeline_parallel_size")) not in ("auto", "1"):
            clash(
                "pipeline_parallel_size",
                f"means nothing to engine {engine}",
                "use auto, or engine vllm or sglang",
            )
    if engine in TENSOR_ENGINES:
        if re.match(r"q\d_|f16", str(precision)):
            clash(
                "precision",
                f"is a GGUF type, which engine {engine} is not given",
                "use auto, bf16, fp8, awq or gptq, or engine llamacpp or ollama",
            )
        if kv_type not in KV_OF_TENSORS:
            clash("kv_cache_dtype", f"is not known to engine {engine}", "use auto, bf16 or fp8")

    adopted = str(value("ollama_adopt")).lower() in ("true", "yes", "1")
    redis = value("gateway_redis") or "auto"
    if adopted and engine not in ("auto", "ollama"):
        clash("ollama_adopt", f"means nothing to engine {engine}", "set engine to auto or ollama")
    if adopted and kv_type not in ("auto", "f16"):
        clash("kv_cache_dtype", "is for the adopted Ollama to choose", "use auto")
    if adopted and value("gpus"):
        clash(
            "gpus",
            "is for the adopted Ollama to choose",
            "leave it empty, and set CUDA_VISIBLE_DEVICES in the environment of your Ollama",
        )
    if value("runtime") == "compose":
        if value("vllm_python"):
            clash(
                "vllm_python",
                "is on the host, not in the container of runtime compose",
                "leave it empty, or set runtime to native",
            )
        if value("images") == "build" and value("host_python") != "/usr/bin/python3":
            clash(
                "host_python",
                "is not in the image that is built of the distribution's packages",
                "set it to /usr/bin/python3, or images to pull",
            )
        own = "set runtime to native, or take its own one: "
        if adopted:
            clash("ollama_adopt", "cannot be reached from containers", own + "ollama_adopt false")
        if LOOPBACK.match(redis):
            other = own + "gateway_redis auto, or give an address that other machines reach"
            clash("gateway_redis", "cannot be reached from containers", other)

    tokens, sequences = str(value("max_num_batched_tokens")), str(value("max_num_seqs"))
    if tokens.isdigit() and sequences.isdigit() and int(tokens) < int(sequences):
        clash(
            "max_num_batched_tokens",
            f"is less than max_num_seqs, {sequences}",
            f"give at least {sequences}, or auto",
        )

    for client in value("gateway_clients") or {}:
        known = value("api_keys")
        if known and client not in known:
            close = nearest(client, known)
            clash(
                "gateway_clients",
                f"names {client}, who has no key",
                (f"did you mean {close}? " if close else "") + f"else add {client} to api_keys",
            )

    hardware, parallel = value("plan_hardware"), str(value("tensor_parallel_size"))
    if hardware and parallel.isdigit():
        cards = len(hardware.get("gpus") or [])
        if int(parallel) > max(cards, 1):
            clash(
                "tensor_parallel_size",
                f"asks for more GPUs than plan_hardware has, {cards}",
                f"use auto or at most {max(cards, 1)}",
            )

    if value("model_fallback") and host != "local":
        clash(
            "model_fallback",
            f"is set on host {host}; only the host `local` may fall back",
            "leave it empty, and set model_sources to a source that answers",
        )

    def is_true(name):
        return str(value(name)).lower() in ("true", "yes", "on", "1")

    if value("gateway_cloud") and is_true("gateway_keep_on_premises"):
        # Not its value, which holds a key.
        found.append(
            problem(
                "gateway_cloud",
                "(hidden)",
                "would send prompts off the premises, which gateway_keep_on_premises forbids",
                "leave gateway_cloud empty, or set gateway_keep_on_premises to false",
            )
        )
    if is_true("gateway_drain") and not (value("gateway_upstreams") or value("gateway_cloud")):
        clash(
            "gateway_drain",
            "leaves no engine to answer",
            "set it to false, or name others in gateway_upstreams",
        )
    if value("runtime") == "compose" and any(
        LOOPBACK.match(f"{one['address']}:") for one in value("gateway_upstreams") or []
    ):
        found.append(
            problem(
                "gateway_upstreams",
                "(hidden)",
                "has a loopback address, which is the gateway's own container",
                "give an address that other machines reach, or set runtime to native",
            )
        )
    trusted = value("gateway_trusted_ca")
    if trusted and not Path(trusted).is_file():
        clash(
            "gateway_trusted_ca",
            "is not a file on the controller",
            "give a PEM file on the controller, or leave it empty",
        )

    calibration = value("model_calibration")
    if calibration and not Path(calibration).is_file():
        clash(
            "model_calibration",
            "is not a file on the controller",
            "give a text file on the controller, or leave it empty",
        )

    if value("gateway_tls") == "own":
        for name in ("gateway_tls_certificate", "gateway_tls_key"):
            file = value(name)
            if not file:
                what = "is empty while gateway_tls is own"
            elif not Path(file).is_file():
                what = "is not a file on the controller"
            else:
                continue
            clash(name, what, f"set {name} to a PEM file on the controller")

    ports = {}
    for name in sorted(name for name in settings if name.endswith("_port")):
        other = ports.setdefault(str(settings[name]), name)
        if other != name:
            clash(name, f"is also the value of {other}", f"give {name} a port of its own")
    return found


def weak_secret(secret: str) -> str | None:
    if PLACEHOLDER.search(secret):
        return "is a placeholder"
    if len(secret) < SECRET_LENGTH:
        return f"has {len(secret)} characters, at least {SECRET_LENGTH} are needed"
    if len(set(secret)) < 8:
        return "repeats the same few characters"
    return None


def check_secret_files(folder: Path, decrypt) -> list[str]:
    """The files of a host's secrets; decrypt(path) gives the text of one that is encrypted."""
    found = []
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        if not path.is_file():
            continue
        if path.stat().st_mode & stat.S_IRWXO:
            found.append(
                problem(
                    path, "(hidden)", "is open to every user of this machine", f"chmod 600 '{path}'"
                )
            )
        if path.name.startswith(("api_key", "engine_key")):
            text = path.read_text(encoding="utf-8", errors="replace").strip()
            try:
                text = decrypt(str(path)).strip() if text.startswith("$ANSIBLE_VAULT") else text
            except AnsibleError as error:
                fix = "give its password with --ask-vault-pass or --vault-password-file"
                why = str(error).splitlines()[0].rstrip(".")
                found.append(problem(path, "(encrypted)", f"cannot be decrypted ({why})", fix))
                continue
            weakness = weak_secret(text)
            if weakness:
                found.append(
                    problem(
                        path,
                        "(hidden)",
                        weakness,
                        f"rm '{path}', and the next deploy makes a strong one",
                    )
                )
    return found


def check_checkout(project: Path) -> list[str]:
    """Whoever may write here may run commands on every host."""
    parts = ("", "ansible.cfg", "deploy.yml", "inventories", "playbooks", "roles", "secrets")
    writable = [
        path
        for path in (project / part for part in parts)
        if path.exists() and path.stat().st_mode & stat.S_IWOTH
    ]
    return [
        problem(
            "checkout",
            f"'{path}'",
            "can be written by every user of this machine",
            f"chmod o-w '{path}'",
        )
        for path in writable
    ]


def origin(*values) -> str:
    """Where a setting was written, as ` from FILE:LINE`, or nothing."""
    for value in values:
        tag = Origin and Origin.get_tag(value)
        if tag and tag.path:
            return f" from {tag.path}" + (f":{tag.line_num}" if tag.line_num else "")
        if tag and tag.description and "-e" in tag.description:
            return " from -e"
    return ""


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            {
                "project": {"type": "path", "required": True},
                "refuse": {"type": "bool", "default": False},
            }
        )
        project, self.task_vars = Path(args["project"]), task_vars
        specs, internal = load_roles(project / "roles")
        settings, self.problems, self.unreadable = {}, [], False
        self.read_settings(specs, settings)

        ignore = settings.get("settings_ignore") or []
        given = set(task_vars) - self.made_by_tasks()
        for name, close in unknown_names(given, specs, internal, ignore):
            self.add(
                name,
                task_vars[name],
                "is set, but no role has a setting of this name",
                f"did you mean {close}? else list it in settings_ignore"
                if close
                else "correct the name, or list it in settings_ignore",
                hidden=bool(SECRET_NAME.search(f"{name} {close}")),
            )

        host = task_vars["inventory_hostname"]
        self.problems += contradictions(settings, host)
        folder = settings.get("secrets_path") or project / "secrets" / host
        self.problems += check_secret_files(Path(folder), self._loader.get_text_file_contents)
        self.problems += check_checkout(project)

        # A later task would stumble over a setting that cannot be computed.
        if self.unreadable or (args["refuse"] and self.problems):
            result["failed"] = True
            count = len(self.problems)
            lines = [f"Refused, nothing was changed. {count} problem{'s' * (count > 1)}:"]
            lines += [f"{number}. {text}" for number, text in enumerate(self.problems, 1)]
            result["msg"] = "\n".join(lines)
        return result | {"changed": False, "problems": self.problems}

    def add(self, name, raw, what, fix, hidden=False, value=None):
        shown = show(raw)
        if hidden:
            shown = "(hidden)"
        elif value is not None and shown != "(encrypted)":
            shown = show(value)
        self.problems.append(problem(name, shown + origin(raw, name), what, fix))

    def read_settings(self, specs, settings):
        """Fill `settings` with the values that are right by themselves."""
        reasons = set()  # one broken setting breaks the defaults made from it
        for name, spec in specs.items():
            if name not in self.task_vars:  # its role is not in this play
                if "default" in spec and "{{" not in str(spec["default"]):
                    settings[name] = spec["default"]
                continue
            parts = (spec.get("options") or {}).values()
            hidden = any(part.get("no_log") for part in (spec, *parts))
            raw = self.task_vars[name]
            try:
                value = self._templar.template(raw)
                str(value)  # an encrypted value is read only now
            except Exception as error:
                reason = (getattr(error, "message", None) or str(error)).splitlines()[0]
                if reason not in reasons:
                    reasons.add(reason)
                    self.unreadable = True
                    self.add(
                        name,
                        raw,
                        f"cannot be computed ({reason})",
                        "define what it refers to, give the vault password, or write the value out",
                        hidden,
                    )
                continue
            wrong = check_value(name, value, spec)
            if not wrong and hidden and isinstance(value, str) and value:
                weakness = weak_secret(value)
                wrong = weakness and (weakness, f"give {SECRET_LENGTH} random characters or more")
            if wrong:
                self.add(name, raw, *wrong, hidden, value)
            else:
                settings[name] = value

    def made_by_tasks(self) -> set:
        """Names registered or set by earlier tasks, as in a second playbook of the same run."""
        manager = getattr(self._task, "_variable_manager", None)
        host = self.task_vars["inventory_hostname"]
        return {
            name
            for cache in ("_nonpersistent_fact_cache", "_vars_cache")
            for name in getattr(manager, cache, {}).get(host, {})
        }
