"""What the role vllm says of its service and its packages, natively and in containers."""

from pathlib import Path

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

REPO = Path(__file__).resolve().parents[2]
KEY = "the-key-of-the-engine"
PLAN = {
    "engine": "vllm", "served_model_name": "tiny-r1", "tensor_parallel_size": 2,
    "pipeline_parallel_size": 1, "max_model_len": 512, "max_num_seqs": 2,
    "max_num_batched_tokens": 512, "kv_cache_dtype": "bf16", "kv_cache_memory_bytes": 1000,
    "gpu_memory_utilization": None, "enforce_eager": False, "gpu_devices": ["GPU-1", "GPU-3"],
    "memory_per_gpu": {"total_bytes": 1000},
}  # fmt: skip
INSPECTED = {"init": "systemd", "ram_mib": 1000, "os": {"codename": "trixie"}}


@pytest.fixture(scope="module")
def told():
    """A variable as Ansible computes it, for a runtime and a source of images."""
    loader = DataLoader()
    known = {}
    for role in ("settings", "host", "vllm", "compose"):
        for part in ("defaults", "vars"):
            path = REPO / f"roles/{role}/{part}/main.yml"
            if path.exists():
                known |= loader.load_from_file(str(path), trusted_as_template=True)
    known |= {
        "plan_result": PLAN, "inspect_result": INSPECTED, "secrets_engine_key": KEY,
        "model_path": "/m", "engine_port": 18000, "engine": "vllm", "__vllm_venv": "/opt/venv",
    }  # fmt: skip

    def find(name, runtime, images="pull", **given):
        variables = known | {"runtime": runtime, "images": images} | given
        return Templar(loader=loader, variables=variables).template(known[name])

    return find


@pytest.mark.parametrize(
    ("runtime", "images", "program", "mounts"),
    [
        ("native", "pull", "/opt/venv/bin/python", ["/var/lib/deepseek-r1/models"]),
        ("compose", "build", "/opt/venv/bin/python", ["/var/lib/deepseek-r1/models"]),
        (
            "compose",
            "pull",
            "python3",
            ["/var/lib/deepseek-r1/models", "/opt/deepseek-r1/vllm/plugin"],
        ),
    ],
)
def test_the_program_and_what_it_reads(told, runtime, images, program, mounts):
    service = told("__vllm_service", runtime, images)
    module = ["-m", "vllm.entrypoints.openai.api_server"]
    assert service["command"] == [
        program, *module, "--config", "/etc/deepseek-r1/engine/vllm.yml",
    ]  # fmt: skip
    assert service["mounts"] == mounts
    assert service["image"] == "docker.io/vllm/vllm-openai:v0.26.0"
    assert service["slow"] and service["gpu"] and service["start_timeout"] == 3600
    assert KEY not in str(service)


def test_only_the_door_of_a_container_is_open(told):
    """The gateway comes in by the private network; vLLM's own processes stay on loopback."""
    assert told("__vllm_flags", "native")["host"] == "127.0.0.1"
    assert told("__vllm_flags", "compose")["host"] == "0.0.0.0"
    for runtime in ("native", "compose"):
        environment = told("__vllm_service", runtime)["environment"]
        assert environment["VLLM_HOST_IP"] == "127.0.0.1"
        assert environment["NCCL_SOCKET_IFNAME"] == environment["GLOO_SOCKET_IFNAME"] == "lo"
        assert environment["PYTHONPATH"] == "/opt/deepseek-r1/vllm/plugin"
        kept = {"HOME", "VLLM_CACHE_ROOT"}
        for name in kept:
            assert environment[name].startswith("/var/lib/deepseek-r1/vllm")
        assert ("CUDA_VISIBLE_DEVICES" in environment) == (runtime == "native")


def test_compilers_are_where_they_are_used(told):
    compiler = {"g++", "libnuma1", "python3-dev"}
    assert compiler <= set(told("__host_packages", "native"))
    assert not compiler & set(told("__host_packages", "native", vllm_python="/opt/python"))
    for images in ("pull", "build"):
        assert not compiler & set(told("__host_packages", "compose", images))
    assert compiler <= set(told("__compose_build_packages", "compose", "build"))
    other = {"plan_result": PLAN | {"engine": "llamacpp"}}
    assert not compiler & set(told("__compose_build_packages", "compose", "build", **other))
    build = told("__compose_build_image", "compose", "build")
    assert build != told("__compose_build_image", "compose", "build", **other)


@pytest.mark.parametrize(
    ("runtime", "images", "plan", "image", "wrong"),
    [
        ("compose", "pull", {"memory": {}}, "docker.io/vllm/vllm-openai:v0.26.0", True),
        ("compose", "pull", {"memory": {}}, "mirror:5000/vllm/vllm-openai@sha256:1", True),
        ("compose", "pull", {"memory": {}}, "docker.io/vllm/vllm-openai-cpu:v0.26.0", False),
        ("compose", "pull", {"memory_per_gpu": {}}, "docker.io/vllm/vllm-openai:v0.26.0", False),
        ("compose", "build", {"memory": {}}, "docker.io/vllm/vllm-openai:v0.26.0", False),
        ("native", "pull", {"memory": {}}, "docker.io/vllm/vllm-openai:v0.26.0", False),
    ],
)
def test_an_image_for_cards_is_refused_on_a_cpu(told, runtime, images, plan, image, wrong):
    given = {"plan_result": {"engine": "vllm"} | plan, "vllm_image": image}
    found = told("__vllm_image_problem", runtime, images, **given)
    assert bool(found) == wrong
    if wrong:
        assert found.startswith(f"vllm_image: value {image} is built for NVIDIA cards, and")
        assert "fix: set images to build, or name an image for CPUs, such as" in found


def test_what_cannot_work_is_told_before_the_image_is_pulled():
    """The fit of driver and CUDA is the role nvidia's, whatever the runtime."""
    (play,) = yaml.safe_load((REPO / "deploy.yml").read_text())
    names = [task["name"] for task in play["tasks"]]
    assert names.index("Plan") < names.index("Preflight") < names.index("NVIDIA driver")
    assert names.index("NVIDIA driver") < names.index("Images")
    wanted = yaml.safe_load((REPO / "roles/nvidia/vars/main.yml").read_text())["__nvidia_wanted"]
    assert "plan_result" in wanted["engine"] and "runtime" not in str(wanted)
