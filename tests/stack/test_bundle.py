"""A bundle made where there is a network, and deployed where there is none."""

import json
import shutil

import closed
import pytest
import yaml
from box import CLONE, PLAY, Box
from hosts import image
from hosts.machine import Machine
from hosts.remote import Remote
from hosts.shell import run, say
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
    "containers": (image.SYSTEMD_DEBIAN13, {"runtime": "compose", "images": "bundle"}),
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
        if kind == "systemd":
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
            assert box.deploy("check", "--check", "--diff").changed > 0
        box.deploy("deploy").result.ok()
        box.verified()
        again = box.deploy("deploy, again")
        assert again.changed == 0, again.changes()
        status, _, body = box.completion()
        assert status == 200 and "4" in json.loads(body)["choices"][0]["message"]["content"]
        assert box.report("plan")["download"]["source"] == "file"
        if kind == "systemd":
            updated(box, bundle, models)
        assert closed.refused(host) == 0
        assert host.run("ls /opt/deepseek-r1/bundle").rc != 0, "what was carried over is gone"


def updated(box, bundle, models):
    """Another model, an update that holds little more than that, and the host has it."""
    carried, update = bundle.with_name("carried"), bundle.with_name("bundle.update")
    shutil.copytree(bundle, carried)
    entry = models["carried-r2"] = models.pop("carried-r1")
    (source,) = entry["precisions"]["q4_k_m"]["sources"]
    whole = bundle / "models/carried-r1/q4_k_m/tiny-r1-q4_k_m.gguf"
    source["path"] = str(shutil.copy(whole, bundle.with_name("r2.gguf")))
    box.describe(model="carried-r2")
    box.play("make an update", "playbooks/bundle.yml", "-e", f"bundle_since={carried}").result.ok()
    held = {str(path.relative_to(update)) for path in update.rglob("*") if path.is_file()}
    say(f"  the update holds {', '.join(sorted(held))}")
    assert held == {"manifest.json", "unpack.py", "models/carried-r2/q4_k_m/r2.gguf"}
    source["path"] = "/nowhere/m.gguf"
    box.describe(bundle=str(carried))
    early = box.deploy("refused: an update that is not there yet").result
    assert "does not hold it" in " ".join(early.output.split()), early.output
    shutil.copytree(update, carried, dirs_exist_ok=True)
    box.deploy("deploy the update").result.ok()
    box.verified()
    assert box.report("plan")["model"] == "carried-r2"
    again = box.deploy("deploy the update, again")
    assert again.changed == 0, again.changes()


def test_a_box_carried_over_by_hand_deploys_itself(repo, tmp_path):
    """One machine with a network makes the bundle, in parts and signed. On another one, which has
    none from its start and neither Ansible nor a clone, Python puts all together and deploys."""
    parts, key = tmp_path / "bundle.parts", tmp_path / "key"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    with Machine(image.CLEAN_DEBIAN12) as connected:
        box = Box(connected, repo)
        connected.run("apt-get -qq update && apt-get -qq install -y openssh-client").ok()
        connected.copy(key, "/root/key")
        connected.run("chmod 600 /root/key").ok()
        box.play("bootstrap", "bin/bootstrap").result.ok()
        args = "-e bundle=/root/bundle -e bundle_part_mib=40 -e bundle_signing_key=/root/key"
        play = f"{PLAY} playbooks/bundle.yml -l local {args} -e model=tiny-r1"
        box.play("make the bundle, in parts", play).result.ok()
        run("docker", "cp", f"{connected.name}:/root/bundle.parts", parts)
    names = sorted(path.name for path in parts.iterdir())
    say(f"  {len(names)} files to carry: {', '.join(names[:3])}, ...")
    with Machine(image.CLEAN_DEBIAN12) as closed_box:
        closed.close(closed_box)
        box = Box(closed_box)
        run("docker", "cp", parts, f"{closed_box.name}:/root/parts")
        unpack = "python3 /root/parts/unpack.py /root/bundle"
        closed_box.run("mv /root/parts/bundle.tar.0001 /root/kept").ok()
        said = closed_box.run(unpack)
        assert said.rc == 1 and "bundle.tar.0001 is missing" in said.output
        closed_box.run("mv /root/kept /root/parts/bundle.tar.0001").ok()
        box.play("put the parts together", unpack, cwd="/").result.ok()
        made = box.play("the project", f"python3 /root/bundle/unpack.py {CLONE}", cwd="/")
        assert "deploy.yml -l HOST -e bundle=/root/bundle" in made.result.ok().output
        deploy = f"{PLAY} deploy.yml -l local -e bundle=/root/bundle"
        said = box.play(
            "refused: nothing can compare the signature", f"{deploy} -e bundle_signer=k"
        )
        assert "ssh-keygen (openssh-client) is missing here" in " ".join(said.output.split())
        box.play("deploy", deploy).result.ok()
        box.verified()
        assert box.report("plan")["model"] == "tiny-r1", "auto is what the bundle was made for"
        again = box.play("deploy again", deploy)
        assert again.changed == 0, again.changes()
        assert closed.refused(closed_box) == 0


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
