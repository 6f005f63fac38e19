"""Run model_files, carry what only the controller has, and show how far a long fetch is."""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from pathlib import Path

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

DOCUMENTATION = r"""
name: model_files
short_description: Wraps the module model_files
description:
  - A first call answers at once when there is nothing to fetch. Files that lie on the controller
    are carried over. A fetch over the network runs in the background while its progress is shown.
options:
  time_limit:
    description: Seconds after which a fetch is given up. Run again to resume it.
    type: int
    default: 86400
  calibration:
    description: >
      Text on the controller to calibrate by, where the model is quantized; empty is the project's.
    type: path
"""
EXAMPLES = "See the module."
RETURN = "See the module."

FILES = Path(__file__).resolve().parents[1] / "files"
PHASES = {
    "checking": "checking SHA-256",
    "converting": "converting to one file of 16 bits",
    "weighing": "computing the importance matrix",
    "quantizing": "quantizing",
    "comparing": "comparing the result with the checkpoint",
}
FIRST_LOOK, LAST_LOOK = 1, 5  # seconds between two looks at the progress
SILENT = 900  # a fetch that says nothing for so many seconds is dead


def human(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


class Meter:
    """Turns what the module writes into lines a person can read."""

    def __init__(self, model: str):
        self.model, self.phase, self.tenths = model, "", 0

    def line(self, state: dict) -> str | None:
        """One line, or nothing when it would only repeat the last."""
        phase, source = state.get("phase"), state.get("source")
        new, self.phase = phase != self.phase, phase
        if phase == "installing":
            what = "what quantizes" if source == "quantize" else f"the client of {source}"
            return f"{self.model}: installing {what}" if new else None
        if phase in PHASES:
            return self.step(PHASES[phase], state, new)
        if phase != "fetching" or not state["total"]:
            return None
        done, total = state["done"], state["total"]
        text = f"{self.model}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB ({100 * done // total} %)"
        rate = state.get("bytes_per_second")
        if rate:
            text += f", {rate / 1e6:,.1f} MB/s, {human(state['seconds_left'])} left"
        return text

    def step(self, name: str, state: dict, new: bool) -> str | None:
        """A step of quantizing: its begin, and every tenth of it where that is known."""
        known = state["phase"] != "checking" and state["total"]
        tenths, before = 10 * state["done"] // state["total"] if known else 0, self.tenths
        self.tenths = tenths
        if not new and tenths <= before:
            return None
        return f"{self.model}: {name}" + (f" ({10 * tenths} %)" if tenths else "")


class ActionModule(ActionBase):
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
        del tmp
        args = dict(self._task.args)
        self.limit = int(args.pop("time_limit", 86400))
        args["shipped"] = str(FILES)
        args["download"] = self._with_listed_folders(args.get("download"))
        calibration = self._calibration(args)
        if self._task.check_mode:
            return self._module(args, task_vars)
        result = self._module({**args, "defer": True}, task_vars)
        if result.get("transfer"):
            args["staged"] = self._carry(result["transfer"])
            result = self._module({**args, "defer": True}, task_vars)
        if result.get("deferred"):
            args["client"] = (FILES / "fetch.py").read_text(encoding="utf-8")
            args["requirements"] = {
                name: (FILES / f"requirements-{name}.txt").read_text(encoding="utf-8")
                for name in ("huggingface", "modelscope", "s3", "quantize")
            }
            args["quantizer"] = {
                "program": (FILES / "quantize.py").read_text(encoding="utf-8"),
                "text": (FILES / "perplexity.txt").read_text(encoding="utf-8"),
                "calibration": calibration,
            }
            self._tell_how_long(args["download"], task_vars)
            result = self._watch(args, result["progress"], task_vars)
        return result

    def _module(self, args, task_vars, **options):
        return self._execute_module(
            module_name="model_files", module_args=args, task_vars=task_vars, **options
        )

    @classmethod
    def _with_listed_folders(cls, download):
        """Name the files of a folder on the controller, which the module may be unable to see."""
        if isinstance(download, dict) and download.get("source") == "quantize":
            return {**download, "from": cls._with_listed_folders(download["from"])}
        if not isinstance(download, dict) or download.get("source") != "file":
            return download
        base = Path(download.get("repository") or "")
        if download.get("files") or not base.is_dir():
            return download
        names = [path for path in sorted(base.rglob("*")) if path.is_file()]
        return {**download, "files": [{"path": str(path.relative_to(base))} for path in names]}

    def _calibration(self, args):
        """The text, which is part of the recipe where it is the user's own."""
        own, download = args.pop("calibration", None), args["download"]
        if not own or not isinstance(download, dict) or download.get("source") != "quantize":
            return (FILES / "calibration.txt").read_text(encoding="utf-8")
        try:
            text = Path(own).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise AnsibleActionFail(
                f"model_calibration: {own} cannot be read as text in UTF-8 ({error}). Give a text "
                "file on the machine that runs Ansible, or leave it empty."
            ) from error
        if download.get("imatrix") or args["precision"] in ("gptq", "awq"):
            digest = hashlib.sha256(text.encode()).hexdigest()[:12]
            revision = f"{download['revision']}, calibration {digest}"
            args["download"] = {**download, "revision": revision}
        return text

    @staticmethod
    def _tell_how_long(download, task_vars):
        if isinstance(download, dict) and download.get("seconds"):
            Display().display(
                f"  [{task_vars.get('inventory_hostname', '')}] to quantize takes about "
                f"{human(download['seconds'])} when all is fetched"
            )

    def _carry(self, paths):
        missing = [path for path in paths if not Path(path).is_file()]
        if missing:
            raise AnsibleActionFail(
                f"{', '.join(missing)}: no such file, neither on the host nor on the machine that"
                " runs Ansible. Correct the model entry's path, or copy the file there."
            )
        folder = self._connection._shell.tmpdir or self._make_tmp_path()
        staged = {}
        for number, path in enumerate(paths):
            staged[path] = self._connection._shell.join_path(folder, f"model-{number}")
            self._transfer_file(path, staged[path])
        self._fixup_perms2((folder, *staged.values()))
        return staged

    def _watch(self, args, progress, task_vars):
        host = task_vars.get("inventory_hostname", "")
        self._task.async_val = self.limit
        try:
            job = self._module(args, task_vars, wrap_async=True)
        finally:
            self._task.async_val = 0
        if not job.get("ansible_job_id"):
            return job
        meter, display = Meter(args["model"]), Display()
        seen, heard, pause = "", time.monotonic(), FIRST_LOOK
        look = f"cat {shlex.quote(progress)}; echo; cat {shlex.quote(job['results_file'])}"
        while True:
            time.sleep(pause)
            pause = min(pause + 1, LAST_LOOK)
            shown, _, outcome = self._low_level_execute_command(look)["stdout"].partition("\n")
            answer = self._json(outcome)
            if answer and (answer.get("finished") or "started" not in answer):
                break
            if shown != seen:
                seen, heard = shown, time.monotonic()
            elif time.monotonic() - heard > SILENT:
                raise AnsibleActionFail(
                    f"The fetch of {args['model']} on {host} died or hangs. Run again: it resumes."
                )
            line = meter.line(self._json(shown))
            if line:
                display.display(f"  [{host}] {line}")
        return self._outcome(job, task_vars)

    @staticmethod
    def _json(text):
        try:
            value = json.loads(text)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def _outcome(self, job, task_vars):
        """What the background job answered; its file is removed."""
        asked = {"jid": job["ansible_job_id"], "_async_dir": str(Path(job["results_file"]).parent)}
        result = {}
        for mode in ("status", "cleanup"):
            answer = self._execute_module(
                module_name="ansible.legacy.async_status",
                module_args={**asked, "mode": mode},
                task_vars=task_vars,
            )
            result = result or answer
        for internal in ("ansible_job_id", "finished", "started", "results_file"):
            result.pop(internal, None)
        return result
