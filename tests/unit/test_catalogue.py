"""The catalogue: every model of the project, every file that ships, names the settings know."""

import hashlib
import re
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "roles/plan/module_utils"))

from r1_planner import catalogue, wishes

REPO = Path(__file__).resolve().parents[2]
CATALOGUE = yaml.safe_load((REPO / "roles/plan/vars/catalogue.yml").read_text())["__plan_catalogue"]
MODELS = catalogue.load(CATALOGUE)
SPECS = yaml.safe_load((REPO / "roles/settings/meta/argument_specs.yml").read_text())
OPTIONS = SPECS["argument_specs"]["settings"]["options"]


def sources():
    for model in MODELS.values():
        for precision, data in model.precisions.items():
            for source in data["sources"]:
                yield model.name, precision, source


def test_all_models():
    assert set(MODELS) == {
        "deepseek-r1-1.5b", "deepseek-r1-7b", "deepseek-r1-8b", "deepseek-r1-14b",
        "deepseek-r1-32b", "deepseek-r1-70b", "deepseek-r1-671b", "deepseek-r1-0528-8b", "tiny-r1",
    }  # fmt: skip


def test_every_model_has_a_gguf_for_the_deployable_engines():
    assert all("q4_k_m" in model.precisions for model in MODELS.values())


def test_prompt_rules_of_0528_differ():
    later = MODELS["deepseek-r1-0528-8b"]
    assert (later.system_prompt, later.forced_think) == (True, False)
    first = MODELS["deepseek-r1-8b"]
    assert (first.system_prompt, first.forced_think) == (False, True)


def test_bundled_files_are_the_ones_that_ship():
    found = [source for _name, _precision, source in sources() if source["source"] == "bundled"]
    assert len(found) == 2
    for source in found:
        for file in source["files"]:
            content = (
                REPO / "roles/model/files" / source["repository"] / file["path"]
            ).read_bytes()
            assert len(content) == file["bytes"]
            assert hashlib.sha256(content).hexdigest() == file["sha256"]


def test_ollama_files_are_pinned_by_hash():
    found = [one for one in sources() if one[2]["source"] == "ollama"]
    assert {name for name, _precision, _source in found} >= {
        f"deepseek-r1-{size}" for size in ("1.5b", "7b", "8b", "14b", "32b", "70b", "0528-8b")
    }
    hashes = [source["files"][0]["sha256"] for _name, _precision, source in found]
    assert all(re.fullmatch(r"[0-9a-f]{64}", one) for one in hashes)
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize(
    ("setting", "known"),
    [
        ("engine", wishes.ENGINES),
        ("runtime", wishes.RUNTIMES),
        ("goal", wishes.GOALS),
        ("precision", wishes._CHOICES["precision"]),
        ("kv_cache_dtype", wishes.KV_CACHE_DTYPES),
    ],
)
def test_settings_and_planner_know_the_same_values(setting, known):
    assert sorted(OPTIONS[setting]["choices"]) == sorted(known)
