"""Every hardware tier of the inventory, planned for the smallest hardware it is meant for."""

import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "roles/plan/module_utils"))

from r1_planner.planner import make_plan
from r1_planner.wishes import DEPLOYABLE_ENGINES

REPO = Path(__file__).resolve().parents[2]
INVENTORY = REPO / "inventories/default"
CATALOGUE = yaml.safe_load((REPO / "roles/plan/vars/catalogue.yml").read_text())["__plan_catalogue"]
TIERS = {
    path.stem: yaml.safe_load(path.read_text())
    for path in sorted((INVENTORY / "group_vars").glob("tier_*.yml"))
}
MODEL_OF = {
    "tier_cpu": "1.5b", "tier_8gb": "7b", "tier_12gb": "14b", "tier_16gb": "14b",
    "tier_24gb": "32b", "tier_48gb": "32b", "tier_80gb": "32b", "tier_2x24gb": "32b",
    "tier_2x80gb": "70b", "tier_8x80gb": "671b", "tier_8x141gb": "671b", "tier_2x8x80gb": "671b",
}  # fmt: skip


def plan(tier, for_deploy, hardware=None):
    settings = {**TIERS[tier], "plan_hardware": hardware or TIERS[tier]["plan_tier_hardware"]}
    settings["nodes"] = settings.get("plan_nodes", 1)
    return make_plan(tier, settings, CATALOGUE, None, for_deploy)


def test_tiers_and_inventory_agree():
    hosts = yaml.safe_load((INVENTORY / "hosts.yml").read_text())["all"]
    assert set(hosts["children"]) == set(TIERS) == set(MODEL_OF)
    assert {"local", "gpu-box"} == set(hosts["hosts"])


@pytest.mark.parametrize("tier", TIERS)
def test_tier_fits_its_hardware(tier):
    found = plan(tier, False)
    assert found["fits"], found["problems"]
    assert not found["problems"]
    assert found["model"] == f"deepseek-r1-{MODEL_OF[tier]}"
    held = found.get("memory_per_gpu") or found["memory"]
    assert held["total_bytes"] - held["droppable_bytes"] <= held["budget_bytes"]
    assert found["max_model_len"] >= (
        16384 if TIERS[tier]["plan_tier_hardware"].get("gpus") else 8192
    )


@pytest.mark.parametrize("tier", [tier for tier in TIERS if tier != "tier_2x8x80gb"])
def test_tier_can_be_deployed(tier):
    found = plan(tier, True)
    assert found["fits"], found["problems"]
    assert not found["problems"]
    assert found["engine"] in DEPLOYABLE_ENGINES


def test_two_hosts_are_refused_kindly_until_they_can_be_deployed():
    found = plan("tier_2x8x80gb", True)
    assert "plan_nodes: this version can plan for 2 but not deploy it" in found["problems"][0]


def test_the_two_hosts_tier_splits_into_tensor_8_pipeline_2():
    found = plan("tier_2x8x80gb", False)
    assert (found["tensor_parallel_size"], found["pipeline_parallel_size"]) == (8, 2)


@pytest.mark.parametrize(
    ("tier", "smaller"), [("tier_12gb", "tier_8gb"), ("tier_24gb", "tier_16gb"),
                          ("tier_80gb", "tier_cpu"), ("tier_8x80gb", "tier_2x80gb")]
)  # fmt: skip
def test_a_tier_does_not_fit_the_tier_below(tier, smaller):
    found = plan(tier, True, TIERS[smaller]["plan_tier_hardware"])
    assert not found["fits"] or found["estimate"]["decode_tokens_per_second_1"] < 8
