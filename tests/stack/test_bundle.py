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


@pytest.fixture
def models(tiny_gguf, repo):
    """An entry of the user's own, so that a model travels, not only the one of the project."""
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
    bundle = tmp_path / "bundle"
    with Remote(recipe) as host:
        box = RemoteBox(host, repo, tmp_path, engine="llamacpp", model="carried-r1",
                        models=models, bundle=str(bundle), **settings)  # fmt: skip
        closed.close(host)
        box.play("make the bundle", "playbooks/bundle.yml").result.ok()
        again = box.play("make it again", "playbooks/bundle.yml")
        assert again.changed == 0, again.changes()
        held = json.loads((bundle / "manifest.json").read_text())["files"]
        size = sum(file["bytes"] for file in held.values())
        say(f"  {len(held)} files, {size / 1e6:.0f} MB")
        # What stands in the entry is the connected machine's: nobody else has that file.
        models["carried-r1"]["precisions"]["q4_k_m"]["sources"][0]["path"] = "/nowhere/m.gguf"
        box.describe()
        if kind == "systemd":
            refusals(box, bundle, sorted(held))
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


def refusals(box, bundle, names):
    """Each before the first change, with what is wrong by name."""

    def refused(*args, **settings):
        more = ("-e", json.dumps(settings)) if settings else ()
        done = box.deploy(f"refused: {settings or 'a wrong file'}", *args, *more).result
        assert done.rc == 2 and "Refused, nothing was changed" in done.output, done.output
        assert "changed=0 " in done.output
        return " ".join(done.output.split())

    model = next(name for name in names if name.endswith(".gguf"))
    deb = next(name for name in names if name.startswith("packages/nginx_"))
    whole = {name: (bundle / name).read_bytes() for name in (model, deb)}
    (bundle / model).write_bytes(whole[model][:-1] + b"x")
    (bundle / deb).write_bytes(whole[deb][:1000])
    said = refused()
    assert f"{model} has SHA-256" in said
    assert f"{deb} has 1000 bytes instead of {len(whole[deb])}" in said
    (bundle / deb).unlink()
    assert f"{deb} is missing" in refused()
    for name, data in whole.items():
        (bundle / name).write_bytes(data)
    assert "is not signed: manifest.json.sig is missing" in refused(bundle_signer="ssh-ed25519 A")
    assert "has no manifest.json" in refused(bundle=str(bundle / "models"))
    assert "is no folder on the machine that runs Ansible" in refused(bundle="/nowhere")
    assert "bundle: value 'b' from -e is not an absolute path" in refused(bundle="b")
    assert "holds no Ollama; fix: make it anew" in refused(engine="ollama")
    assert "lacks packages that this host needs (docker-cli, docker-compose, docker.io" in refused(
        runtime="compose", images="build"
    )
    assert "images: value pull asks registries" in refused(runtime="compose")
    assert "the bundle" in (said := refused(model="deepseek-r1-1.5b")) and "not hold it" in said
    said = refused(engine="vllm", precision="bf16", model="tiny-r1")
    assert "lacks the Python packages of vLLM in this version of the project" in said
