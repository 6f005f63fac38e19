"""The checks of the role settings, one function at a time; tests/refusals runs them for real."""

import secrets

import pytest


@pytest.fixture(scope="module")
def checks(load_plugin):
    return load_plugin("roles/settings/action_plugins/check_settings.py")


@pytest.fixture(scope="module")
def specs(checks, repo):
    return checks.load_roles(repo / "roles")[0]


UPSTREAM = {"name": "b", "address": "10.0.0.2", "port": 8080}
CLOUD = {
    "base_url": "https://api.deepseek.com/v1",
    "key": "key-of-the-cloud",
    "models": {"deepseek-r1-14b": "deepseek-reasoner"},
    "tokens_per_day": 1000000,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gateway_port", 1),
        ("gateway_port", "8080"),
        ("max_model_len", "auto"),
        ("max_model_len", 32768),
        ("max_model_len", "32768"),
        ("gpu_memory_utilization", 0.95),
        ("gpu_memory_utilization", "0.9"),
        ("enforce_eager", True),
        ("enforce_eager", "false"),
        ("data_path", "/mnt/data disk".replace(" ", "-")),
        ("plan_hardware", {}),
        ("plan_hardware", {"gpus": [{"memory_mib": 24576, "compute_capability": 8.9}], "cpus": 4}),
        ("model_sources", ["huggingface"]),
        ("huggingface_endpoint", "http://127.0.0.1:9000/hub"),
        ("api_keys", ["alice", "batch-jobs"]),
        ("gateway_tls", False),  # a bare `off` in YAML
        ("gateway_max_body", "512k"),
        ("gateway_address", "::1"),
        ("gateway_metrics_allow", ["10.0.0.0/8", "192.168.1.2"]),
        ("gateway_upstreams", []),
        ("gateway_upstreams", [UPSTREAM, UPSTREAM | {"name": "c", "port": "80", "drain": True}]),
        ("gateway_upstreams", [UPSTREAM | {"address": "b.example", "tls": True, "key": "k"}]),
        ("gateway_cloud", {}),
        ("gateway_cloud", CLOUD),
        ("gateway_limits", {"requests_per_minute": 0, "models": ["deepseek-r1:7b", "org/R1"]}),
        ("gateway_clients", {"a": {"concurrent_streams": 2, "cache": False}, "b": {}}),
        ("gateway_engine_requests", 0),
        ("gateway_queue", "auto"),
        ("model_max_perplexity_ratio", 1.05),
        ("s3_endpoint", ""),
        ("s3_endpoint", "http://minio.lan:9000"),
        ("model_connections", 64),
        ("model_max_rate_mb_s", 0),
        ("model_max_rate_mb_s", 2.5),
    ],
)
def test_right_values(checks, specs, name, value):
    assert checks.check_value(name, value, specs[name]) is None


@pytest.mark.parametrize(
    ("name", "value", "what", "fix"),
    [
        ("gateway_port", "http", "not valid", "a whole number"),
        ("gateway_port", 0, "not a TCP port", "1 to 65535"),
        ("model_share_port", 65536, "neither auto nor a TCP port", "1 to 65535"),
        ("model_share_port", "0", "neither auto nor a TCP port", "1 to 65535"),
        ("gateway_port", 65536, "not a TCP port", "1 to 65535"),
        ("engine", "olama", "not one of its choices", "did you mean ollama?"),
        ("engine", "tgi", "not one of its choices", "auto, ollama, vllm, llamacpp, sglang"),
        ("max_model_len", 0, "neither auto nor", "above 0"),
        ("max_num_seqs", "1.5", "neither auto nor", "above 0"),
        ("gpu_memory_utilization", 0, "neither auto nor", "0.05 to 0.99"),
        ("gpu_memory_utilization", 1.1, "neither auto nor", "0.05 to 0.99"),
        ("gpu_memory_utilization", "90%", "neither auto nor", "0.05 to 0.99"),
        ("enforce_eager", "maybe", "neither auto nor", "true or false"),
        ("data_path", "/", "not a folder", "below /"),
        ("data_path", "models", "not a folder", "absolute path"),
        ("data_path", "/my disk", "not a folder", "letters, digits"),
        ("ollama_registry", "registry.ollama.ai", "not a URL", "https://HOST"),
        ("gateway_max_body", "10 MB", "not a size", "10m"),
        ("redis_maxmemory", "lots", "not a size", "256mb"),
        ("gateway_read_timeout", 0, "not above 0", "seconds"),
        ("gateway_address", "eth0", "not an IP address", "0.0.0.0"),
        ("gateway_metrics_allow", ["the office"], "more than networks", "10.0.0.0/8"),
        ("gateway_upstreams", [{"name": "b"}], "address", "a list"),
        ("gateway_upstreams", [UPSTREAM | {"name": "cloud"}], "the name 'cloud'", "not engine"),
        ("gateway_upstreams", [UPSTREAM, UPSTREAM], "the name b twice", "once"),
        ("gateway_upstreams", [UPSTREAM | {"address": "http://b"}], "'http://b'", "without http"),
        ("gateway_upstreams", [UPSTREAM | {"port": 0}], "for b the port 0", "65535"),
        ("gateway_upstreams", [UPSTREAM | {"key": ""}], "for b an empty key", "leave `key` out"),
        ("gateway_upstreams", [UPSTREAM | {"health": "healthz"}], "'healthz'", "a path"),
        ("gateway_upstreams", [UPSTREAM | {"drain": "yes"}], "text as drain", "without quotes"),
        ("gateway_upstreams", [UPSTREAM | {"tls": True}], "an IP address", "name in its cert"),
        ("gateway_cloud", CLOUD | {"base_url": "http://a/v1"}, "base_url of https", "https://"),
        ("gateway_cloud", CLOUD | {"key": ""}, "has no key", "vault"),
        ("gateway_cloud", CLOUD | {"models": {}}, "names no model", "deepseek-reasoner"),
        ("gateway_cloud", CLOUD | {"tokens_per_day": 0}, "has no budget", "tokens_per_day"),
        ("gateway_cloud", CLOUD | {"first_byte_seconds": 0}, "of 0 or less", "30"),
        ("gateway_cloud", CLOUD | {"when": "always"}, "failover, overflow", "a mapping"),
        ("api_keys", "alice", "is text, not a list", '{"api_keys": ...}'),
        ("api_keys", [], "names no client", "[default]"),
        ("api_keys", ["a", "a"], "names a client twice", "once"),
        ("api_keys", ["../a"], "holds the name '../a'", "letters"),
        ("gateway_limits", {"requests": 5}, "requests", "a mapping"),
        ("gateway_limits", {"tokens_per_minute": -1}, "tokens_per_minute -1", "0 for no limit"),
        ("gateway_limits", {"tokens_per_minute": True}, "tokens_per_minute True", "whole number"),
        ("gateway_limits", {"models": ["a b"]}, "has models ['a b']", "a list of names"),
        ("gateway_clients", {"a": 5}, "has 5 for a", "{a: {cache: false}}"),
        (
            "gateway_clients",
            {"a": {"token_per_minute": 5}},
            "unknown member 'token_per_minute' for a",
            "did you mean tokens_per_minute?",
        ),
        ("gateway_clients", {"a": {"concurrent_streams": -2}}, "concurrent_streams -2 for a", "0"),
        ("gateway_clients", {"a": {"models": "x"}}, "has models 'x' for a", "a list"),
        ("gateway_clients", {"a": {"cache": "no"}}, "has cache 'no' for a", "true or false"),
        ("gateway_engine_requests", -1, "neither auto nor", "0 or more"),
        ("gateway_queue", "many", "neither auto nor", "0 or more"),
        ("s3_endpoint", "minio:9000", "not a URL", "http://HOST"),
        ("s3_region", "", "is no region", "us-east-1"),
        ("model_connections", 0, "no number of connections", "from 1 to 64"),
        ("model_connections", 65, "no number of connections", "from 1 to 64"),
        ("model_max_rate_mb_s", -5, "no rate of 0.1 MB/s", "0 for no limit"),
        ("model_max_rate_mb_s", 0.01, "no rate of 0.1 MB/s", "0 for no limit"),
        ("model_max_perplexity_ratio", 0.9, "neither auto nor", "1.1"),
        ("model_quantize_minutes", 0, "not above 0", "720"),
        ("model_imatrix", "often", "not valid", "true or false"),
        ("model_sources", ["modelscop"], "modelscope, huggingface", "a list"),
        ("plan_hardware", {"gpu": []}, "gpu", "a mapping"),
        ("plan_hardware", {"gpus": [{"name": 1, "memory": 2}]}, "memory", "a mapping"),
        ("plan_hardware", {"gpus": [{"memory_mib": 0}]}, "a card's memory_mib 0", "above 0"),
        ("plan_hardware", {"ram_mib": 0}, "has ram_mib 0", "above 0"),
    ],
)
def test_wrong_values(checks, specs, name, value, what, fix):
    found = checks.check_value(name, value, specs[name])
    assert what in found[0]
    assert fix in found[1]


@pytest.mark.parametrize(
    ("settings", "start", "fix"),
    [
        (
            {"engine": "ollama", "precision": "awq"},
            "precision: value 'awq' cannot be read by engine ollama",
            "q4_k_m",
        ),
        (
            {"engine": "llamacpp", "kv_cache_dtype": "fp8"},
            "kv_cache_dtype: value 'fp8' is not known to engine llamacpp",
            "q8_0",
        ),
        (
            {"engine": "llamacpp", "pipeline_parallel_size": 2},
            "pipeline_parallel_size: value 2 means nothing to engine llamacpp",
            "auto",
        ),
        (
            {"engine": "vllm", "precision": "q4_k_m"},
            "precision: value 'q4_k_m' is a GGUF type",
            "awq",
        ),
        (
            {"engine": "sglang", "kv_cache_dtype": "q8_0"},
            "kv_cache_dtype: value 'q8_0' is not known to engine sglang",
            "fp8",
        ),
        (
            {"max_num_batched_tokens": 64, "max_num_seqs": 128},
            "max_num_batched_tokens: value 64 is less than max_num_seqs, 128",
            "at least 128",
        ),
        (
            {"api_keys": ["alice", "bob"], "gateway_clients": {"alicia": {}, "bob": {}}},
            "gateway_clients: value {'alicia': {}, 'bob': {}} names alicia, who has no key",
            "did you mean alice? else add alicia to api_keys",
        ),
        (
            {"plan_hardware": {"cpus": 4}, "tensor_parallel_size": 2},
            "tensor_parallel_size: value 2 asks for more GPUs than plan_hardware has, 0",
            "at most 1",
        ),
        (
            {"gateway_port": "18000", "engine_port": 18000},
            "gateway_port: value '18000' is also the value of engine_port",
            "a port of its own",
        ),
        (
            {"engine": "auto", "ollama_adopt": True, "gpus": ["0"]},
            "gpus: value ['0'] is for the adopted Ollama to choose",
            "leave it empty",
        ),
        (
            {"model_fallback": "tiny-r1"},
            "model_fallback: value 'tiny-r1' is set on host gpu-box",
            "leave it empty",
        ),
        (
            {"gateway_cloud": CLOUD, "gateway_keep_on_premises": True},
            "gateway_cloud: value (hidden) would send prompts off the premises, which"
            " gateway_keep_on_premises forbids",
            "set gateway_keep_on_premises to false",
        ),
        (
            {"gateway_drain": True},
            "gateway_drain: value True leaves no engine to answer",
            "gateway_upstreams",
        ),
        (
            {"runtime": "compose", "gateway_upstreams": [UPSTREAM | {"address": "127.0.0.1"}]}
            | {"host_python": "/usr/bin/python3"},
            "gateway_upstreams: value (hidden) has a loopback address",
            "that other machines reach",
        ),
        (
            {"model_calibration": "/nowhere/prompts.txt"},
            "model_calibration: value '/nowhere/prompts.txt' is not a file on the controller",
            "give a text file",
        ),
        (
            {"gateway_trusted_ca": "/nowhere/ca.crt"},
            "gateway_trusted_ca: value '/nowhere/ca.crt' is not a file on the controller",
            "PEM file",
        ),
    ],
)
def test_contradictions(checks, settings, start, fix):
    defaults = {"kv_cache_dtype": "auto", "pipeline_parallel_size": "auto"}
    (found,) = checks.contradictions({**defaults, **settings}, "gpu-box")
    assert found.startswith(start)
    assert fix in found.partition("; fix: ")[2]


def test_the_defaults_agree_with_each_other(checks, specs):
    settings = {name: spec["default"] for name, spec in specs.items() if "default" in spec}
    assert checks.contradictions(settings, "gpu-box") == []
    assert checks.contradictions({**settings, "model_fallback": "tiny-r1"}, "local") == []


def test_unknown_names(checks):
    documented = {"gateway_port": {}, "engine": {}}
    names = ["gateway_prot", "engine", "__mine", "ansible_host", "r1_etc", "backup_dir", "zzz"]
    names += ["inventory_hostname", "groups", "environment"]
    assert checks.unknown_names(names, documented, {"r1_etc"}, ["backup_*"]) == [
        ("gateway_prot", "gateway_port"),
        ("zzz", None),
    ]


@pytest.mark.parametrize(
    "secret",
    ["", "short", "changeme-changeme-changeme-1", "my-password-is-long-enough-123", "a" * 40,
     "sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "<put your key here, please do>", "ab" * 20,
     "YOUR_API_KEY_AAAAAAAAAAAAAAAA", "sk-1234567890abcdefghijklmno"],
)  # fmt: skip
def test_weak_secrets(checks, secret):
    assert checks.weak_secret(secret)


def test_made_secrets_are_strong(checks):
    assert not any(checks.weak_secret("sk-" + secrets.token_urlsafe(32)) for _ in range(2000))


def test_secret_files(checks, tmp_path):
    assert checks.check_secret_files(tmp_path / "missing", None) == []
    strong = "sk-" + secrets.token_urlsafe(32)
    for name, text, mode in [
        ("api_key", "changeme", 0o600),
        ("api_key.alice", strong, 0o644),
        ("api_key.bob", strong, 0o600),
        ("engine_key", "$ANSIBLE_VAULT;1.1;AES256\n6162", 0o600),
        ("note", "x", 0o600),
    ]:
        (tmp_path / name).write_text(text + "\n")
        (tmp_path / name).chmod(mode)
    weak, readable = checks.check_secret_files(tmp_path, lambda _: strong)
    assert weak.startswith(f"{tmp_path}/api_key: value (hidden) is a placeholder; fix: rm ")
    assert readable.startswith(f"{tmp_path}/api_key.alice: value (hidden) is open to every user")
    assert f"chmod 600 '{tmp_path}/api_key.alice'" in readable


def test_checkout(checks, tmp_path):
    (tmp_path / "roles").mkdir()
    tmp_path.chmod(0o755)
    assert checks.check_checkout(tmp_path) == []
    (tmp_path / "roles").chmod(0o777)
    (found,) = checks.check_checkout(tmp_path)
    assert found.startswith(f"checkout: value '{tmp_path}/roles' can be written by every user")
    assert f"fix: chmod o-w '{tmp_path}/roles'" in found
