"""A bundle made where there is a network, and deployed where there is none."""

import json

import closed
import pytest
import yaml
from hosts import image
from hosts.remote import Remote
from hosts.shell import say
from remote import RemoteBox

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1500)]

# An entry of the user's own, so that a model travels, and not only the one of the project.
CARRIED = {
    "carried-r1": {
        "like": "tiny-r1",
    }
}


@pytest.fixture
def models(tiny_gguf, repo):
    catalogue = yaml.safe_load((repo / "roles/plan/vars/catalogue.yml").read_text())
    entry = catalogue["__plan_catalogue"]["tiny-r1"]
    source = {"source": "file", "path": str(tiny_gguf)}
    return {"carried-r1": {**entry, "precisions": {"q4_k_m": {"sources": [source]}}}}


KINDS = {
    "systemd": (image.SYSTEMD_DEBIAN13, {}),
    "supervisor": (image.SSH_DEBIAN12, {}),
    "containers": (image.SYSTEMD_DEBIAN13, {"runtime": "compose", "images": "build"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_host_without_a_network_gets_all_from_the_bundle(kind, repo, tmp_path, models):
    recipe, settings = KINDS[kind]
    bundle = str(tmp_path / "bundle")
    with Remote(recipe) as host:
        box = RemoteBox(host, repo, tmp_path, engine="llamacpp", model="carried-r1",
                        models=models, bundle=bundle, **settings)  # fmt: skip
        closed.close(host)
        made = box.play("make the bundle", "playbooks/bundle.yml")
        made.result.ok()
        again = box.play("make it again", "playbooks/bundle.yml")
        assert again.changed == 0, again.changes()
        manifest = json.loads((tmp_path / "bundle/manifest.json").read_text())
        say(f"  {len(manifest['files'])} files, "
            f"{sum(file['bytes'] for file in manifest['files'].values()) / 1e6:.0f} MB")  # fmt: skip
        # What stands in the entry is the connected machine's: nobody else has that file.
        models["carried-r1"]["precisions"]["q4_k_m"]["sources"][0]["path"] = "/nowhere/m.gguf"
        box.describe()
        check = box.deploy("check", "--check", "--diff")
        assert check.changed > 0
        box.deploy("deploy").result.ok()
        box.verified()
        again = box.deploy("deploy, again")
        assert again.changed == 0, again.changes()
        status, _, body = box.completion()
        assert status == 200 and "4" in json.loads(body)["choices"][0]["message"]["content"]
        assert box.report("plan")["download"]["source"] == "file"
        assert closed.refused(host) == 0
        assert host.run("ls /opt/deepseek-r1/bundle").rc != 0, "what was carried over is gone"
