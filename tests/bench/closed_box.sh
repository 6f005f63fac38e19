#!/usr/bin/env bash
# Deploy vLLM with this project on a closed, rented GPU box: no network, no Docker, no systemd.
#
#   tests/bench/closed_box.sh CARRIED OUT STEP...     as root on the box, in the root of a clone
#
# CARRIED is a folder with what a connected machine made:
#   parts/   BUNDLE.parts of playbooks/bundle.yml (README, "Closed networks") with model: tiny-r1,
#            precision: bf16, engine: vllm, vllm_python: /usr/bin/python3 and bundle_part_mib
#   site/    vLLM and what it needs besides torch, unpacked from its wheels
# The box has torch already, in the environment of the `python3` found first. The bundle may be of
# another distribution that is not newer: its nginx and Redis are then put onto the box by force.
# OUT gets each step's log and the reports. Steps, each with its time:
#   prepare  the bundle put together, packages, the project with its Ansible
#   tiny     deploy the bundle's model and verify it; again: changed=0
#   refused  deploy from the bundle with one byte changed, and with a file cut
#   wrong    deploy with a flag that cannot work, for the engine's own reason
#   dummy    deploy made-up weights of real shapes: 7B bf16, for the plan against vLLM's figures
#   dummy32  the same of 32B, which takes two cards
# CARRIED/more.yml, where there is one, holds more vllm_environment and vllm_args for that box.
set -uo pipefail
carried=$1 out=$2
shift 2
data=/srv/deepseek-r1 begin=$SECONDS
python=$(command -v python3)

bundle=$carried/bundle project=/srv/project

prepare() {
  python3 "$carried/parts/unpack.py" "$bundle"
  printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
  chmod 755 /usr/sbin/policy-rc.d
  cd "$bundle/packages" || return
  for deb in {nginx,libnginx,lua-,libluajit,liblzf,libjemalloc,libpcre3,redis}*.deb; do
    name=$(dpkg-deb -f "$deb" Package)
    dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || echo "$deb"
  done | xargs dpkg --force-depends -i # names of libraries differ between distributions
  # Stands in for Ansible's module apt, which has nothing to do here.
  empty=$(mktemp -d) && mkdir "$empty/DEBIAN"
  printf 'Package: python3-apt\nVersion: 3\nArchitecture: all\nMaintainer: none\nDescription: empty\n' \
    > "$empty/DEBIAN/control"
  dpkg-deb -b "$empty" "$empty.deb" && dpkg -i "$empty.deb"
  cd - || return
  rm -f /usr/sbin/policy-rc.d
  PYTHON=/usr/bin/python3 python3 "$bundle/unpack.py" "$project"
  PYTHONPATH=tests/bench:$carried/site "$python" - "$carried" "$data" <<'PYTHON'
import json, shutil, sys, yaml
from pathlib import Path
from vllm_memory import config_of

carried, data = sys.argv[1:]
catalogue = yaml.safe_load(open("roles/plan/vars/catalogue.yml"))["__plan_catalogue"]
models = {}
for size in ("7b", "32b"):
    shape, folder = catalogue[f"deepseek-r1-{size}"]["shape"], Path(f"/srv/dummy-{size}")
    folder.mkdir(exist_ok=True)
    for name in ("generation_config", "tokenizer", "tokenizer_config"):
        shutil.copy(f"roles/model/files/tiny-r1/hf/{name}.json", folder)
    (folder / "config.json").write_text(json.dumps(config_of(shape, "bf16")))
    source = {"source": "file", "path": str(folder)}
    models[folder.name] = {"shape": shape, "precisions": {"bf16": {"sources": [source]}}}
settings = {
    "engine": "vllm", "gateway_port": 8080, "data_path": data,
    "vllm_python": sys.executable, "vllm_load_timeout": 300, "models": models,
    "vllm_environment": {"PYTHONPATH": f"{carried}/site", "CUDA_HOME": "/usr/local/cuda",
                         "LD_LIBRARY_PATH": "/usr/local/nvidia/lib64"},
}
more = Path(carried, "more.yml")
for name, value in (yaml.safe_load(more.read_text()) if more.exists() else {}).items():
    settings[name] = settings.get(name, {}) | value
Path(carried, "settings.json").write_text(json.dumps(settings))
PYTHON
}

playbook() {
  (cd "$project" && .venv/bin/ansible-playbook -l local -e "@$carried/settings.json" "$@")
}

tiny() {
  playbook deploy.yml -e bundle="$bundle"
  playbook deploy.yml -e bundle="$bundle" | tail -n 3
  curl -sS http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \
    -H "Authorization: Bearer $(cat $project/secrets/local/api_key)" \
    -d '{"model": "tiny-r1", "messages": [{"role": "user", "content": "What is 2+2?"}]}'
}

refused() {
  for file in "$bundle"/wheels/supervisor-*.whl "$bundle"/packages/nginx_*.deb; do
    cp "$file" /tmp/whole
    printf x | dd of="$file" bs=1 seek=1000 conv=notrunc status=none
    playbook deploy.yml -e bundle="$bundle" | grep -A 3 Refused
    head -c 1000 /tmp/whole > "$file"
    playbook deploy.yml -e bundle="$bundle" | grep -A 3 Refused
    cp /tmp/whole "$file"
  done
}

wrong() {
  playbook deploy.yml -e model=tiny-r1 -e '{"vllm_args": {"gpu-memory-utilization": 0.999}}'
}

dummy() {
  playbook deploy.yml -e "model=dummy-${1:-7b}" \
    -e "$(jq -c '{vllm_args: (.vllm_args + {"load-format": "dummy"})}' "$carried/settings.json")"
}

dummy32() { dummy 32b; }

for step; do
  start=$SECONDS
  ANSIBLE_CONFIG=ansible.cfg "$step" > "$out/$step.log" 2>&1
  echo "$step: exit $?, $((SECONDS - start)) s"
  tr '\r' '\n' < /var/log/deepseek-r1/engine.log > "$out/engine-$step.log" 2>/dev/null
  mkdir -p "$out/reports-$step" && cp "$project"/reports/local/*.json "$out/reports-$step" 2>/dev/null
done
nvidia-smi -q -x > "$out/nvidia-smi.xml"
echo "all: $((SECONDS - begin)) s"
