#!/usr/bin/env bash
# Deploy vLLM with this project on a closed, rented GPU box: no network, no Docker, no systemd.
#
#   tests/bench/closed_box.sh CARRIED OUT STEP...     as root on the box, in the root of a clone
#
# CARRIED is a folder with what a connected machine fetched:
#   wheels/  pip download -r of requirements/deploy.txt, requirements/collections.txt and
#            roles/supervisor/files/requirements.txt
#   debs/    nginx, its Lua modules, Redis and what they need, of a distribution not newer
#   site/    vLLM and what it needs besides torch, unpacked from its wheels
# The box has torch already, in the environment of the `python3` found first.
# OUT gets each step's log and the reports. Steps, each with its time:
#   prepare  packages and Ansible, with pip told that there is no index
#   tiny     deploy the model that ships with the project and verify it; again: changed=0
#   wrong    deploy with a flag that cannot work, for the engine's own reason
#   dummy    deploy made-up weights of real shapes: 7B bf16, for the plan against vLLM's figures
set -uo pipefail
carried=$1 out=$2
shift 2
data=/srv/deepseek-r1 begin=$SECONDS
python=$(command -v python3)

prepare() {
  printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
  chmod 755 /usr/sbin/policy-rc.d
  for deb in "$carried"/debs/*.deb; do
    name=$(dpkg-deb -f "$deb" Package)
    dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || echo "$deb"
  done | xargs dpkg --force-depends -i # names of libraries differ between distributions
  # Stands in for Ansible's module apt, which has nothing to do here.
  empty=$(mktemp -d) && mkdir "$empty/DEBIAN"
  printf 'Package: python3-apt\nVersion: 3\nArchitecture: all\nMaintainer: none\nDescription: empty\n' \
    > "$empty/DEBIAN/control"
  dpkg-deb -b "$empty" "$empty.deb" && dpkg -i "$empty.deb"
  rm -f /usr/sbin/policy-rc.d
  PIP_NO_INDEX=1 PIP_FIND_LINKS=$carried/wheels PYTHON=/usr/bin/python3 bin/bootstrap
  mkdir -p /srv/dummy-7b
  cp roles/model/files/tiny-r1/hf/{generation_config,tokenizer,tokenizer_config}.json /srv/dummy-7b
  PYTHONPATH=tests/bench:$carried/site "$python" - <<'PYTHON'
import json, yaml
from vllm_memory import config_of

models = yaml.safe_load(open("roles/plan/vars/catalogue.yml"))["__plan_catalogue"]
config = config_of(models["deepseek-r1-7b"]["shape"], "bf16")
json.dump(config, open("/srv/dummy-7b/config.json", "w"))
PYTHON
  cat > "$carried/settings.json" <<JSON
{"engine": "vllm", "gateway_port": 8080, "data_path": "$data", "host_wheels": "$carried/wheels",
 "vllm_python": "$python", "vllm_load_timeout": 300,
 "vllm_environment": {"PYTHONPATH": "$carried/site", "CUDA_HOME": "/usr/local/cuda",
   "LD_LIBRARY_PATH": "/usr/local/nvidia/lib64"},
 "models": {"dummy-7b": {
   "shape": {"layers": 28, "hidden": 3584, "heads": 28, "kv_heads": 4, "ffn": 18944,
             "vocab": 152064, "qkv_bias": true},
   "precisions": {
     "bf16": {"bytes": 15231233024, "sources": [{"source": "file", "path": "/srv/dummy-7b"}]}}}}}
JSON
}

playbook() { .venv/bin/ansible-playbook "$@" -l local -e "@$carried/settings.json"; }

tiny() {
  playbook deploy.yml -e model=tiny-r1
  playbook deploy.yml -e model=tiny-r1 | tail -n 3
  curl -sS http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \
    -H "Authorization: Bearer $(cat secrets/local/api_key)" \
    -d '{"model": "tiny-r1", "messages": [{"role": "user", "content": "What is 2+2?"}]}'
}

wrong() {
  playbook deploy.yml -e model=tiny-r1 -e '{"vllm_args": {"gpu-memory-utilization": 0.999}}'
}

dummy() {
  playbook deploy.yml -e model=dummy-7b -e '{"vllm_args": {"load-format": "dummy"}}'
}

for step; do
  start=$SECONDS
  ANSIBLE_CONFIG=ansible.cfg "$step" > "$out/$step.log" 2>&1
  echo "$step: exit $?, $((SECONDS - start)) s"
  tr '\r' '\n' < /var/log/deepseek-r1/engine.log > "$out/engine-$step.log" 2>/dev/null
  mkdir -p "$out/reports-$step" && cp reports/local/*.json "$out/reports-$step" 2>/dev/null
done
nvidia-smi -q -x > "$out/nvidia-smi.xml"
echo "all: $((SECONDS - begin)) s"
