"""The plan of one host, from settings, catalogue and hardware."""

from __future__ import annotations

from dataclasses import replace

from . import catalogue, choose, making, reasons, sources
from . import hardware as hw
from .candidates import GGUF_ENGINES, evaluate
from .units import PlanError
from .wishes import DEPLOYABLE_ENGINES, DEPLOYABLE_RUNTIMES, Wishes, wishes_from


def make_plan(host, settings, models, inspection=None, for_deploy=False):
    """Return the plan as a plain dict (the content of plan.json).

    settings: plain values as Ansible has them; `models` in it are the user's own entries,
    `plan_hardware` goes before the inspection, `model_fallback` names the model to take when
    no source answers. models: the project's catalogue. Raises PlanError on wrong input, with
    every fault found.
    """
    problems, known, wishes, hardware = [], {}, None, None
    try:
        known = catalogue.load(models, settings.get("models") or {})
        wishes = wishes_from(settings, known)
    except PlanError as error:
        problems += error.problems
    try:
        hardware = _hardware(settings, inspection)
    except PlanError as error:
        problems += error.problems
    if problems:
        raise PlanError(problems)
    return _Plan(host, settings, known, inspection or {}, for_deploy, wishes, hardware).make()


def _hardware(settings, inspection):
    bandwidth = settings.get("memory_bandwidth_gb_s")
    nodes, wanted = int(settings.get("nodes") or 1), settings.get("gpus") or ()
    if settings.get("plan_hardware"):
        return hw.hardware_from(settings["plan_hardware"], bandwidth, nodes, wanted)
    if not inspection:
        raise PlanError("plan_hardware: is not set and the host was not looked at.")
    flags = settings.get("llamacpp_cpu_flags") or ()
    return hw.from_inspection(inspection, bandwidth, nodes, flags, wanted)


class _Plan:
    def __init__(self, host, settings, models, inspection, for_deploy, wishes, hardware):
        self.host, self.settings = host, settings
        self.models = {
            name: one.with_made(wishes.precision, hardware.gpus) for name, one in models.items()
        }
        self.for_deploy, self.wishes, self.hardware = for_deploy, wishes, hardware
        self.measured = not settings.get("plan_hardware")
        self.runtime = "native" if wishes.runtime == "auto" else wishes.runtime
        self.answers = inspection.get("sources") or None if self.measured else None
        self.present = set(inspection.get("models_present") or []) if self.measured else set()
        self.problems, self.reasons, self.fallback = [], [f"hardware: {hardware.words}."], False
        self.reasons += hardware.notes
        self.reasons.append(
            reasons.runtime(self.runtime, wishes.runtime, inspection.get("init") or "")
        )
        self.disk = choose.disk_check(hardware, wishes, self.present, self.measured)

    def make(self):
        choice, others, order = self._choose()
        busy = choice.top is None and self._fits_if_idle()
        if choice.top is None and self.hardware.gpus and self.wishes.engine == "auto" and not busy:
            self._without_gpus(choice)
            if not self.hardware.gpus:
                choice, others, order = self._choose()
        chosen, download = choice.top, None
        if chosen is None:
            self._nothing_fits(choice, busy)
        else:
            self.reasons += [
                reasons.of_other_engine(other, chosen)
                for other in others
                if order.index(other.shown.engine) < order.index(chosen.engine)
            ]
            chosen, download = self._source(chosen)
        self._deployable(choice.shown)
        alternatives = self._alternatives(chosen) if chosen else []
        if chosen is not None:
            self.reasons += reasons.of_choice(chosen, self.wishes, self.fallback)
            self.reasons += reasons.of_faster(chosen, alternatives)
        self.reasons += reasons.of_rejections(
            choice, chosen, self.models, self.wishes, self.hardware
        )
        return self._as_dict(chosen, choice.shown, download, alternatives)

    def _choose(self):
        order, why = choose.engines(self.hardware, self.wishes)
        self.reasons += why
        reachable = choose.source_check(self.disk, self.wishes, self.answers, self.present)
        for check in (reachable, self.disk):
            best, others = choose.choose(self.models, self.hardware, self.wishes, order, check)
            if best.top is not None:
                break
        return best, others, order

    def _fits_if_idle(self):
        """Whether what was asked for would fit, if nobody else used the GPUs."""
        if not self.hardware.gpus_if_idle:
            return False
        idle = replace(self.hardware, gpus=self.hardware.gpus_if_idle)
        order, _why = choose.engines(idle, self.wishes)
        return choose.choose(self.models, idle, self.wishes, order, self.disk)[0].top is not None

    def _without_gpus(self, choice):
        """Where nothing fits the GPUs, but the CPU serves what was asked for: use the CPU."""
        plain = replace(self.hardware, gpus=())
        order, _why = choose.engines(plain, self.wishes)
        top = choose.choose(self.models, plain, self.wishes, order, self.disk)[0].top
        if top is not None and not top.slow:
            self.reasons.append(f"hardware: the GPU is not used: {choice.shown.why_not}")
            self.hardware = plain

    def _source(self, chosen):
        """Return the Candidate to deploy, which may be the fallback, and its download."""
        download, errors = sources.find(
            chosen.model, chosen.precision, chosen.engine, self.wishes, self.answers, self.present
        )
        if download is None:
            return self._without_source(chosen, errors)
        if errors:
            self.reasons.append(f"source: {'; '.join(errors)}.")
        if download["source"] == "quantize":
            download = making.planned(download, chosen.precision, self.hardware, self.wishes)
            self.reasons.append(reasons.of_quantizing(chosen, download))
        return chosen, download

    def _without_source(self, chosen, errors):
        fallback = self.settings.get("model_fallback")
        why = "; ".join(errors)
        if fallback and self.wishes.model == "auto" and fallback in self.models:
            wishes = replace(
                self.wishes, model=fallback, precision="auto", max_model_len=None, min_context=0
            )
            model = self.models[fallback]
            found, _less = choose.best_precision(
                model, chosen.engine, self.hardware, wishes, self.disk
            )
            if found.fits:
                self.fallback = True
                self.reasons.insert(0, reasons.of_fallback(chosen, fallback, why))
                download, _errors = sources.find(
                    model, found.precision, found.engine, wishes, self.answers, self.present
                )
                return found, download
        self.problems.append(reasons.no_source(chosen, why, self.wishes.bundle))
        return chosen, None

    def _nothing_fits(self, choice, busy):
        if self.wishes.model != "auto":
            why = reasons.of_misfit(choice.shown, self.largest(), self.wishes)
        else:
            why = reasons.of_no_fit(self.hardware, choice.shown)
        if busy:
            why = f"{why} {reasons.of_busy(self.hardware)}"
        self.problems.append(why)

    def largest(self):
        """The most able Candidate that would fit this hardware, whatever was asked for."""
        free = Wishes(
            engine=self.wishes.engine,
            goal=self.wishes.goal,
            model_sources=self.wishes.model_sources,
            min_context=self.wishes.min_context,
            min_tokens_per_second=self.wishes.min_tokens_per_second,
            memory_reserve_mib=self.wishes.memory_reserve_mib,
            prompt_cache_mib=self.wishes.prompt_cache_mib,
        )
        order, _why = choose.engines(self.hardware, free)
        return choose.choose(self.models, self.hardware, free, order, self.disk)[0].top

    def _deployable(self, found):
        if not self.for_deploy:
            return
        if found.engine not in DEPLOYABLE_ENGINES:
            self.problems.append(reasons.not_deployable("engine", found.engine, DEPLOYABLE_ENGINES))
        elif found.pipeline_parallel > 1:
            self.problems.append(
                reasons.not_deployable("plan_nodes", found.pipeline_parallel, (1,))
            )
        runtime = self.wishes.runtime
        if runtime not in ("auto", *DEPLOYABLE_RUNTIMES):
            self.problems.append(reasons.not_deployable("runtime", runtime, DEPLOYABLE_RUNTIMES))

    def _alternatives(self, chosen):
        """Every other model that fits with the same engine, most able first."""
        wishes = replace(self.wishes, model="auto")
        found = []
        for model in self.models.values():
            for precision in choose.precisions(model, chosen.engine, self.hardware, wishes):
                if (model.name, precision) == (chosen.model.name, chosen.precision):
                    continue
                one = evaluate(model, chosen.engine, precision, self.hardware, wishes)
                if one.fits and self.disk(one).fits:
                    found.append(one)
        found.sort(key=lambda one: (choose.ability(one), one.label), reverse=True)
        return [reasons.alternative(one) for one in found]

    def _as_dict(self, chosen, shown, download, alternatives):
        shown = chosen or shown
        largest = None if chosen else self.largest()
        key = "memory_per_gpu" if shown.gpus else "memory"
        return {
            "host": self.host,
            "engine": shown.engine,
            "runtime": self.runtime,
            "model": shown.model.name if chosen or self.wishes.model != "auto" else None,
            "served_model_name": shown.model.name,
            "precision": shown.precision if chosen or self.wishes.precision != "auto" else None,
            "fits": chosen is not None,
            "fallback": self.fallback,
            "problems": self.problems,
            "reasons": self.reasons,
            "alternatives": alternatives,
            "largest_that_fits": reasons.alternative(largest) if largest else None,
            "tensor_parallel_size": shown.tensor_parallel,
            "pipeline_parallel_size": shown.pipeline_parallel,
            "max_model_len": shown.context,
            "max_num_seqs": shown.sequences,
            "max_num_batched_tokens": shown.batched_tokens,
            "gpu_memory_utilization": shown.utilization,
            "kv_cache_memory_bytes": shown.kv_cache_bytes,
            "kv_cache_dtype": shown.kv_dtype,
            "enforce_eager": shown.eager,
            "gpu_devices": self._gpu_devices(shown),
            key: shown.memory.as_dict(shown.tokens) if shown.memory else None,
            "disk_bytes": sources.disk_bytes(download, shown.engine) if download else None,
            "download": download,
            "estimate": shown.speed,
            "prompt": {
                "system_prompt": shown.model.system_prompt,
                "forced_think": shown.model.forced_think,
            },
            "engine_args": self._engine_args(shown) if chosen else {},
        }

    def _gpu_devices(self, shown):
        """The GPUs for the engine as CUDA knows them; None where it may see all there are."""
        used = self._gpus(shown)
        if len(used) == self.hardware.gpus_seen and not any(gpu.is_slice for gpu in used):
            return None
        return [gpu.device for gpu in used]

    def _gpus(self, shown):
        return self.hardware.gpus[: shown.gpus // self.hardware.nodes]

    def _engine_args(self, shown):
        if shown.engine not in GGUF_ENGINES:
            return {}
        return {
            "threads": max(1, self.hardware.cpus),
            "slots": shown.sequences,
            "context_total": shown.context * shown.sequences,
            "gpu_layers": 999 if shown.gpus else 0,
            "gpus": shown.gpus,
            "gpu_indexes": [gpu.index for gpu in self._gpus(shown)],
        }


def refused(host, problems):
    """The plan of a host whose settings are wrong."""
    return {"host": host, "fits": False, "fallback": False, "problems": list(problems),
            "reasons": [], "alternatives": []} | dict.fromkeys(
        ("engine", "model", "served_model_name", "precision", "download", "estimate"))  # fmt: skip
