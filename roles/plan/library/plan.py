"""The documentation of the action plugin of this name; nothing of it runs on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: plan
short_description: Plan which engine, model, precision and context a host gets, and why
description:
  - Computes memory from the models' tensor shapes, decode speed from memory bandwidth, and
    takes the most able model that fits and is fast enough. What you set goes before its choice.
  - Runs on the controller, does not touch the host and needs no connection.
  - Writes the plan to O(report) in check mode too, when it differs from what is there. A report
    is output, not state, so this never counts as a change.
options:
  settings:
    description: >
      The settings by their public names, and C(min_context), C(min_tokens_per_second),
      C(memory_reserve_mib), C(memory_bandwidth_gb_s), C(nodes), C(model_fallback),
      C(quantize_minutes), C(imatrix), C(calibration).
    type: dict
    required: true
  inspection:
    description: What M(inspect_host) found. Not used when C(plan_hardware) is among the settings.
    type: dict
    default: {}
  catalogue:
    description: YAML file of the known models.
    type: path
    required: true
  lock:
    description: JSON file of what the hubs held; M(model_lock) writes it.
    type: path
  report:
    description: JSON file to write the plan to.
    type: path
  for_deploy:
    description: >
      Whether the plan is to be deployed now. Then what this version can only plan and wrong
      settings become C(problems) instead of a failure.
    type: bool
    default: false
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Plan for one 24 GB card
  plan:
    catalogue: roles/plan/vars/catalogue.yml
    settings:
      model: auto
      plan_hardware:
        gpus: [{name: NVIDIA L4, memory_mib: 23034, compute_capability: 8.9}]
        ram_mib: 64000
        cpus: 16
  register: plan_result
"""

RETURN = r"""
engine:
  description: Engine to deploy.
  type: str
  returned: always
model:
  description: Name of the model; null when nothing fits.
  type: str
  returned: always
served_model_name:
  description: The name clients ask for.
  type: str
  returned: always
precision:
  description: Precision of the weights.
  type: str
  returned: always
fits:
  description: Whether the plan fits the hardware.
  type: bool
  returned: always
problems:
  description: Why the plan cannot be deployed, a sentence each, with figures and the fix.
  type: list
  elements: str
  returned: always
reasons:
  description: A sentence for every choice and every rejected model.
  type: list
  elements: str
  returned: always
alternatives:
  description: What else would fit, with what it would give; the most able first.
  type: list
  elements: dict
  returned: always
largest_that_fits:
  description: When the plan does not fit, the most able that would.
  type: dict
  returned: always
memory:
  description: >
    Bytes of weights, KV cache and the rest on a CPU; with GPUs C(memory_per_gpu) instead.
  type: dict
  returned: when planned
download:
  description: Source, repository, revision, files, bytes, and alternatives to try next.
  type: dict
  returned: always
estimate:
  description: Tokens per second for one user, and what limits it.
  type: dict
  returned: always
fallback:
  description: Whether the built-in test model stands in because no source answers.
  type: bool
  returned: always
prompt:
  description: What the model wants of prompts, C(system_prompt) and C(forced_think).
  type: dict
  returned: always
summary:
  description: The plan as a page to read; not in the report.
  type: str
  returned: always
gpu_devices:
  description: >
    UUIDs of the GPUs or of the MIG slice for the engine; null where it may see all there are.
  type: list
  elements: str
  returned: always
engine_args:
  description: Figures for the engine's own flags.
  type: dict
  returned: always
"""
