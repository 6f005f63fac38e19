"""Cards that are busy, in MIG slices, hidden or different: what is seen, planned and refused.

The reports of nvidia-smi are made by hand from the recorded one of an H100 that runs nothing.
"""

import copy
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "roles/plan/module_utils"))

from r1_planner import cards
from r1_planner.planner import make_plan
from r1_planner.units import GIB, PlanError

REPO = Path(__file__).resolve().parents[2]
CATALOGUE = yaml.safe_load((REPO / "roles/plan/vars/catalogue.yml").read_text())["__plan_catalogue"]
RECORDED = (Path(__file__).parent / "data/nvidia-smi-h100.xml").read_text()
H100 = "NVIDIA H100 80GB HBM3"
PYTHON = (4711, "/usr/bin/python3", 31949)
OURS = (900, "/opt/deepseek-r1/vllm/bin/python", 70000)
LISTING = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0)
  MIG 1g.10gb     Device  0: (UUID: MIG-a)
  MIG 3g.40gb     Device  1: (UUID: MIG-b)
  MIG 3g.40gb     Device  2: (UUID: MIG-c)
"""


def card(number, *processes, used=None, name=H100, total=81559, slices=None):
    """The recorded card with another UUID, processes (pid, name, MiB) and slices (GI, MiB)."""
    gpu = copy.deepcopy(ElementTree.fromstring(RECORDED).find("gpu"))
    gpu.find("uuid").text, gpu.find("product_name").text = f"GPU-{number}", name
    gpu.find("fb_memory_usage/total").text = f"{total} MiB"
    sizes = [size or 0 for _pid, _name, size, *_where in processes]
    gpu.find("fb_memory_usage/used").text = f"{sum(sizes) if used is None else used} MiB"
    for pid, program, size, *where in processes:
        add(
            gpu.find("processes"), "process_info", pid=pid, process_name=program,
            gpu_instance_id=where[0] if where else "N/A", compute_instance_id=0 if where else "N/A",
            used_memory="N/A" if size is None else f"{size} MiB",
        )  # fmt: skip
    if slices is not None:
        gpu.find("mig_mode/current_mig").text = "Enabled"
    for index, (where, size, taken) in enumerate(slices or []):
        part = add(
            gpu.find("mig_devices"), "mig_device", index=index, gpu_instance_id=where,
            compute_instance_id=0,
        )  # fmt: skip
        add(part, "fb_memory_usage", total=f"{size} MiB", used=f"{taken} MiB")
    return gpu


def add(parent, name, **fields):
    element = ElementTree.SubElement(parent, name)
    for field, text in fields.items():
        ElementTree.SubElement(element, field).text = str(text)
    return element


SLICES = [(9, 9728, 12), (1, 40448, 25600), (2, 40448, 50)]


@pytest.fixture
def seen(load_plugin):
    """What inspect_host says of a host with these cards."""
    inspect_host = load_plugin("roles/inspect/library/inspect_host.py")

    def of(*gpus, visible=None, listing=LISTING, holders=None):
        root = ElementTree.Element("nvidia_smi_log")
        root.extend(gpus)
        report = ElementTree.tostring(root, encoding="unicode")

        def ours(_pid, name):
            return name.startswith("/opt/deepseek-r1/")

        found = inspect_host.parse_gpus(report, "", listing, ours)["gpus"]
        inspect_host.add_unlisted(found, holders or {})
        return {
            "gpus": found, "gpus_visible": visible, "init": "systemd", "ram_mib": 500000,
            "cpu": {"count": 32, "flags": []}, "disk": {"free_mib": 900000},
        }  # fmt: skip

    return of


def plan(inspection, for_deploy=False, **settings):
    return make_plan("box", settings, CATALOGUE, inspection, for_deploy)


def reasons(found):
    return "\n".join(found["reasons"])


def variable(value, name="CUDA_VISIBLE_DEVICES"):
    return {"variable": name, "value": value, "where": "the environment of process 1"}


def test_processes_and_slices_are_read(seen):
    (gpu,) = seen(card(0, (*PYTHON, 1), OURS, slices=SLICES))["gpus"]
    python, own = gpu["processes"]
    assert python == {"pid": 4711, "name": "python3", "used_mib": 31949, "ours": False}
    assert own["ours"] is True
    assert [(one["name"], one["uuid"]) for one in gpu["slices"]] == [
        ("1g.10gb", "MIG-a"), ("3g.40gb", "MIG-b"), ("3g.40gb", "MIG-c"),
    ]  # fmt: skip
    assert [one["memory_mib"] for one in gpu["slices"]] == [9728, 40448, 40448]
    assert [one["processes"] for one in gpu["slices"]] == [[], [python], []]


# Busy cards


def test_free_cards_go_before_busy_ones(seen):
    found = plan(seen(card(0), card(1, PYTHON), card(2)), engine="vllm", model="deepseek-r1-70b")
    assert found["tensor_parallel_size"] == 2
    assert found["gpu_devices"] == ["GPU-0", "GPU-2"]
    assert "GPU 1: 31.2 GiB are in use by python3 (pid 4711); it is not used" in reasons(found)


@pytest.mark.parametrize("utilization", ["auto", 0.5])
def test_a_busy_card_is_planned_with_what_is_left(seen, utilization):
    wish = {"engine": "vllm", "model": "deepseek-r1-14b", "gpu_memory_utilization": utilization}
    found = plan(seen(card(0, PYTHON)), **wish)
    assert found["fits"], found["problems"]
    told = "GPU 0: 31.2 GiB are in use by python3 (pid 4711); 47.9 GiB are left and planned with"
    assert told in reasons(found)
    assert found["memory_per_gpu"]["total_bytes"] < 47.9 * GIB
    free = (81559 - 481 - 31949) / (81559 - 481)
    assert found["gpu_memory_utilization"] < free, "or vLLM would not start"
    assert found["gpu_devices"] is None


def test_a_share_that_is_not_free_is_refused(seen):
    found = plan(
        seen(card(0, PYTHON)), engine="vllm", model="deepseek-r1-7b", gpu_memory_utilization=0.9
    )
    assert "and for the 31.2 GiB that others use" in found["problems"][0]
    assert "at most 0.5" in found["problems"][0]


def test_what_a_busy_card_keeps_from_fitting_names_the_process_and_the_fix(seen):
    found = plan(seen(card(0, (4711, "/usr/bin/python3", 80000))), True)
    assert not found["fits"], "no silent plan for the CPU"
    (problem,) = found["problems"]
    assert "GPU 0: 78.1 GiB are in use by python3 (pid 4711). Fix: stop what uses them" in problem
    assert "set gpus to other cards" in problem
    named = plan(seen(card(0, PYTHON)), engine="vllm", model="deepseek-r1-70b", precision="awq",
                 max_model_len=65536)  # fmt: skip
    assert "the NVIDIA H100 80GB HBM3 has left 47." in named["problems"][0]
    assert "It would fit if nobody else used the GPUs: GPU 0: 31.2 GiB" in named["problems"][0]


def test_where_it_would_not_fit_an_idle_card_either_nobody_is_blamed(seen):
    found = plan(seen(card(0, PYTHON)), engine="vllm", model="deepseek-r1-671b")
    assert not found["fits"]
    assert "pid 4711" not in found["problems"][0]


def test_all_cards_busy_the_set_with_most_room(seen):
    cards_of = [card(n, (n + 1, "train", size)) for n, size in enumerate((20000, 30000, 79000))]
    found = plan(seen(*cards_of), engine="vllm", model="deepseek-r1-32b")
    assert found["gpu_devices"] == ["GPU-0", "GPU-1"]
    assert found["memory_per_gpu"]["total_bytes"] < (81559 - 481 - 30000) * 2**20


def test_our_own_engine_does_not_make_a_card_busy(seen):
    first, second = plan(seen(card(0))), plan(seen(card(0, OURS, used=70300)))
    assert second == first
    unknown = (*OURS[:2], None)
    assert plan(seen(card(0, unknown, used=70300))) == first
    shared = plan(seen(card(0, OURS, (4711, "python3", 9000), used=79100)))
    assert "GPU 0: 8.9 GiB are in use by python3 (pid 4711); 70." in reasons(shared)


def test_a_little_in_use_without_a_process_is_the_drivers(seen):
    assert plan(seen(card(0, used=700))) == plan(seen(card(0)))
    few = (12, "/usr/lib/xorg/Xorg", 200)
    desktop = plan(seen(card(0, few), card(1)), engine="vllm", model="deepseek-r1-70b")
    assert desktop["tensor_parallel_size"] == 2
    assert "200 MiB" not in reasons(desktop)
    assert "GPU 0: 0.2 GiB are in use by Xorg (pid 12); 78.9 GiB are left" in reasons(desktop)


def test_a_few_mib_more_do_not_change_the_plan(seen):
    one, other = (plan(seen(card(0, (4711, "python3", size)))) for size in (31850, 31949))
    one.pop("reasons"), other.pop("reasons")
    assert one == other


def test_memory_of_processes_that_cannot_be_seen(seen):
    found = plan(seen(card(0, used=40000), card(1)), engine="vllm", model="deepseek-r1-7b")
    assert found["gpu_devices"] == ["GPU-1"]
    assert "GPU 0: 39.1 GiB are in use by what nvidia-smi does not list" in reasons(found)


def test_our_engine_in_a_container_where_no_process_is_listed(seen):
    """Its own environment tells which of the cards it holds."""
    first = plan(seen(card(0, used=40000), card(1)))
    again = plan(seen(card(0, used=40000), card(1, used=70000), holders={900: "GPU-1"}))
    assert again == first
    assert plan(seen(card(0, used=70000), holders={900: ""})) == plan(seen(card(0)))


# MIG slices


def test_the_largest_free_slice_is_taken(seen):
    found = plan(seen(card(0, (*PYTHON, 1), slices=SLICES)), engine="vllm")
    assert found["fits"]
    assert found["gpu_devices"] == ["MIG-c"]
    assert found["tensor_parallel_size"] == 1
    assert found["memory_per_gpu"]["budget_bytes"] < 40448 * 2**20
    assert "GPU 0, MIG slice MIG-c (NVIDIA H100 80GB HBM3 MIG 3g.40gb) is used" in reasons(found)
    assert "of the NVIDIA H100 80GB HBM3 MIG 3g.40gb, 1,675 GB/s" in reasons(found)


def test_a_single_slice_is_named_too(seen):
    found = plan(seen(card(0, slices=SLICES[2:]), listing=LISTING.replace("MIG-a", "MIG-z")))
    assert found["gpu_devices"] == ["MIG-z"]


def test_no_tensor_parallel_over_slices(seen):
    found = plan(seen(card(0, slices=SLICES)), engine="vllm", model="deepseek-r1-7b",
                 tensor_parallel_size=2)  # fmt: skip
    assert "needs 2 GPUs, there are 1" in found["problems"][0]


def test_a_whole_card_beside_slices(seen):
    found = plan(seen(card(0, slices=SLICES), card(1)), engine="vllm")
    assert found["gpu_devices"] == ["GPU-1"]


def test_mig_without_slices_is_refused_with_the_fix(seen):
    with pytest.raises(PlanError) as caught:
        plan(seen(card(0, slices=[])))
    message = str(caught.value)
    assert "GPU 0 (NVIDIA H100 80GB HBM3): MIG is on, but the card has no slices" in message
    assert "'nvidia-smi mig -i 0 -cgi 0 -C'" in message and "'nvidia-smi -i 0 -mig 0'" in message
    beside = plan(seen(card(0, slices=[]), card(1)))
    assert beside["gpu_devices"] == ["GPU-1"]
    assert "MIG is on, but the card has no slices" in reasons(beside)


def test_llama_cpp_knows_no_slices(seen):
    found = plan(seen(card(0, slices=SLICES)), engine="llamacpp", model="deepseek-r1-7b")
    assert "Vulkan, which knows no MIG slices; set engine to ollama" in found["problems"][0]


@pytest.mark.parametrize(
    ("name", "part", "whole", "eighths"),
    [
        (H100, 9728, 81559, 1),
        (H100, 19968, 81559, 2),
        (H100, 40448, 81559, 4),
        (H100, 80896, 81559, 8),
        ("NVIDIA A30", 5952, 24576, 2),
    ],
)
def test_bandwidth_of_a_slice(name, part, whole, eighths):
    assert cards.slice_bandwidth(name, part, whole) == cards.lookup(name)[1] * eighths / 8


# Hidden cards


@pytest.mark.parametrize("gpus", [["1"], [1], ["GPU-1"], ["gpu-1"]])
def test_gpus_restricts_the_cards(seen, gpus):
    found = plan(seen(card(0), card(1)), gpus=gpus, model="deepseek-r1-7b")
    assert found["gpu_devices"] == ["GPU-1"]
    assert "of 2 GPUs only GPU 1, as gpus says." in reasons(found)


def test_gpus_may_name_a_slice_or_the_slices_of_a_card(seen):
    host = seen(card(0, slices=SLICES), card(1))
    assert plan(host, gpus=["MIG-a"])["gpu_devices"] == ["MIG-a"]
    assert plan(host, gpus=["GPU-0"])["gpu_devices"] == ["MIG-c"]


def test_what_the_host_hides_is_left_alone(seen):
    host = seen(card(0), card(1), card(2), visible=variable("2,0"))
    found = plan(host, model="deepseek-r1-70b", engine="vllm")
    assert found["gpu_devices"] == ["GPU-0", "GPU-2"]
    told = "CUDA_VISIBLE_DEVICES in the environment of process 1 says; the setting gpus goes before"
    assert told in reasons(found)
    assert plan(host, gpus=["1"])["gpu_devices"] == ["GPU-1"]


@pytest.mark.parametrize("value", ["", "-1"])
def test_a_host_that_hides_all_cards_gets_a_plan_for_its_cpu(seen, value):
    found = plan(seen(card(0), visible=variable(value)))
    assert found["engine"] == "ollama" or found["engine"] == "llamacpp"
    assert found["gpu_devices"] == []
    assert "no GPU is used, as CUDA_VISIBLE_DEVICES in the environment" in reasons(found)


def test_what_the_container_toolkit_hid_is_counted_by_uuid_alone(seen):
    def devices(value):
        visible = variable(value, "NVIDIA_VISIBLE_DEVICES")
        return plan(seen(card(0), card(1), visible=visible), model="deepseek-r1-7b")["gpu_devices"]

    assert devices("GPU-1") == ["GPU-1"]
    assert devices("GPU-9") == devices("GPU-0,GPU-1")


@pytest.mark.parametrize(
    ("settings", "visible", "message"),
    [
        ({"gpus": ["0", "5"]}, None, "gpus: 5 is no card of this host, which has 0 (NVIDIA H100"),
        ({"gpus": ["G"]}, None, "gpus: G is no card"),
        ({"gpus": ["GPU-7"]}, None, "Fix: name them by number or by UUID ('nvidia-smi -L')"),
        ({}, variable("5"), "CUDA_VISIBLE_DEVICES in the environment of process 1 names it"),
    ],
)
def test_a_card_that_is_not_there_is_refused_by_name(seen, settings, visible, message):
    with pytest.raises(PlanError) as caught:
        plan(seen(card(0), card(1), visible=visible), **settings)
    assert message in str(caught.value)


def test_gpus_on_a_host_without_a_card(seen):
    with pytest.raises(PlanError, match="gpus: 0 is no card of this host, which has none"):
        plan(seen(), gpus=["0"])


def test_what_an_environment_says(load_plugin):
    module = load_plugin("roles/inspect/library/inspect_host.py")
    first = {"NVIDIA_VISIBLE_DEVICES": "GPU-1"}
    assert module.visible_gpus([("deploy", {}), ("first", {})]) is None
    assert module.visible_gpus([("first", {"NVIDIA_VISIBLE_DEVICES": "3"})]) is None
    assert module.visible_gpus([("first", {"NVIDIA_VISIBLE_DEVICES": "all"})]) is None
    assert module.visible_gpus([("first", first)])["variable"] == "NVIDIA_VISIBLE_DEVICES"
    said = module.visible_gpus([("deploy", {"CUDA_VISIBLE_DEVICES": ""}), ("first", first)])
    assert said == {"variable": "CUDA_VISIBLE_DEVICES", "value": "", "where": "deploy"}


# Different cards, and what reaches the engine


def test_of_different_cards_the_one_with_most_room(seen):
    l4 = {"name": "NVIDIA L4", "total": 23034}
    assert plan(seen(card(0, **l4), card(1)))["gpu_devices"] == ["GPU-1"]
    full = card(1, (4711, "train", 70000))
    assert plan(seen(card(0, **l4), full))["gpu_devices"] == ["GPU-0"]


def test_no_more_cards_than_the_plan_uses(seen):
    host = seen(*(card(number) for number in range(3)))
    assert plan(host, engine="ollama", model="deepseek-r1-7b")["gpu_devices"] == ["GPU-0"]
    assert plan(host, engine="vllm", model="deepseek-r1-7b")["gpu_devices"] == ["GPU-0", "GPU-1"]
    assert plan(seen(), model="deepseek-r1-1.5b")["gpu_devices"] is None


@pytest.mark.parametrize(
    ("devices", "environment"),
    [
        (None, {}),
        (["GPU-1", "GPU-2"], {"CUDA_DEVICE_ORDER": "PCI_BUS_ID",
                              "CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"}),
        ([], {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "-1"}),
    ],
)  # fmt: skip
def test_the_engine_sees_the_cards_of_the_plan_alone(devices, environment):
    found = templated("settings", "r1_gpu_environment", devices=devices)
    assert found == environment
    assert templated("settings", "r1_gpu_environment", devices=devices, runtime="compose") == {}
    vulkan = {"GGML_VK_VISIBLE_DEVICES": "1,2"} if devices else {"GGML_VK_VISIBLE_DEVICES": ""}
    told = templated("llamacpp", "__llamacpp_vulkan", devices=devices)
    assert told == (vulkan if environment else {})


def templated(role, name, devices, runtime="native"):
    """A variable of a role, as Ansible computes it for a plan with these devices."""
    from ansible.parsing.dataloader import DataLoader
    from ansible.template import Templar

    loader = DataLoader()
    loaded = {}
    for folder in ("settings", role):
        path = str(REPO / f"roles/{folder}/vars/main.yml")
        loaded |= loader.load_from_file(path, trusted_as_template=True)
    args = {"gpu_indexes": [1, 2] if devices else []}
    loaded |= {
        "runtime": runtime, "plan_result": {"gpu_devices": devices, "engine_args": args},
    }  # fmt: skip
    return Templar(loader=loader, variables=loaded).template(loaded[name])


# The table of cards


def test_common_cards_are_known():
    named = {
        "Tesla T4": 7.5, "Tesla V100-SXM2-16GB": 7.0, "Tesla V100-PCIE-32GB": 7.0,
        "Tesla P100-PCIE-16GB": 6.0, "NVIDIA GeForce RTX 2080 Ti": 7.5,
        "NVIDIA GeForce RTX 3060": 8.6, "NVIDIA GeForce RTX 3090": 8.6,
        "NVIDIA GeForce RTX 4070 Ti": 8.9, "NVIDIA GeForce RTX 4080": 8.9,
        "NVIDIA GeForce RTX 4090": 8.9, "NVIDIA GeForce RTX 5090": 12.0, "NVIDIA A10": 8.6,
        "NVIDIA A16": 8.6, "NVIDIA A30": 8.0, "NVIDIA A40": 8.6, "NVIDIA A100-PCIE-40GB": 8.0,
        "NVIDIA A100-SXM4-40GB": 8.0, "NVIDIA A100 80GB PCIe": 8.0, "NVIDIA A100-SXM4-80GB": 8.0,
        "NVIDIA L4": 8.9, "NVIDIA L40": 8.9, "NVIDIA L40S": 8.9, "NVIDIA RTX A4000": 8.6,
        "NVIDIA RTX A5000": 8.6, "NVIDIA RTX A6000": 8.6, "NVIDIA RTX 6000 Ada Generation": 8.9,
        "NVIDIA RTX PRO 6000 Blackwell Server Edition": 12.0, "NVIDIA H100 PCIe": 9.0, H100: 9.0,
        "NVIDIA H100 NVL": 9.0, "NVIDIA H200": 9.0, "NVIDIA H20": 9.0, "NVIDIA H800": 9.0,
        "NVIDIA A800-SXM4-80GB": 8.0, "NVIDIA A800 80GB PCIe": 8.0, "NVIDIA B200": 10.0,
    }  # fmt: skip
    for name, capability in named.items():
        assert cards.lookup(name)[2] == capability, name


def test_a_name_that_only_begins_alike_is_another_card():
    assert cards.lookup("NVIDIA RTX A3000 Laptop GPU") is None
    assert cards.lookup("NVIDIA A100-PG509-200") is None
    assert cards.lookup("NVIDIA L40S") != cards.lookup("NVIDIA L4")


@pytest.mark.parametrize(
    ("card_name", "engine", "settings", "message"),
    [
        ("Tesla P100-PCIE-16GB", "vllm", {}, "vLLM needs compute capability 7.5"),
        ("Tesla V100-SXM2-16GB", "vllm", {"precision": "awq"}, "vLLM needs compute capability 7.5"),
        ("Tesla T4", "vllm", {"precision": "bf16"}, "bf16 needs compute capability 8.0, the Tesla"),
        ("NVIDIA A16", "vllm", {"precision": "fp8"}, "fp8 needs compute capability 8.9"),
        ("NVIDIA GeForce RTX 3090", "vllm", {"kv_cache_dtype": "fp8"}, "an fp8 KV cache needs"),
    ],
)
def test_what_a_card_cannot_do(card_name, engine, settings, message):
    hardware = {"gpus": [{"name": card_name}], "ram_mib": 64000, "cpus": 8}
    found = make_plan("box", {"plan_hardware": hardware, "engine": engine,
                              "model": "deepseek-r1-7b", **settings}, CATALOGUE)  # fmt: skip
    assert message in found["problems"][0]
    assert "Instead: " in found["problems"][0]
