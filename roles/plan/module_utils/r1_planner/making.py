"""How long it takes to make a model on the host, from what docs/quantize.md measured."""

from __future__ import annotations

from dataclasses import dataclass

from .weights import is_gguf

START = 15  # seconds in which a step loads Python's libraries
# Seconds per GB of the checkpoint: read, turned into one file of 16 bits by one thread, written.
CONVERT = 9
# To write it with fewer bits. The K types search for their scales; times the cores.
QUANTIZE, QUANTIZE_K = 1.5, 50
# One window of 512 tokens, computed on the CPU; times the cores.
WINDOW = 24
# Two models see 8 windows each to be compared; of a text of calibration there are 20 in the
# project's own (25 KB), at most 128 in one of the user's (quantize.py).
COMPARED, CALIBRATED, CALIBRATED_AT_MOST = 16, 20, 128
# With a GPU, on an H100: 1.5B by fp8 26 s, GPTQ 41 s, AWQ 63 s, the comparison 42 and 46 s.
COMPRESS = {"fp8": 3.5, "gptq": 8, "awq": 14}
COMPARE_GPU = 9
_PLAIN = ("f16", "q8_0")  # formats without scales to search for


@dataclass(frozen=True)
class Making:
    """The recipe of one model, and what it takes."""

    importance: bool  # whether an importance matrix goes into a GGUF file
    seconds: int


def of(size, precision, hardware, wishes):
    """Make `precision` of a checkpoint of so many bytes."""
    gb, cores = size / 1e9, hardware.cpus
    windows = CALIBRATED_AT_MOST if wishes.calibration else CALIBRATED
    if not is_gguf(precision):
        again = windows / CALIBRATED if precision != "fp8" else 1
        return Making(False, round(2 * START + gb * (COMPRESS[precision] * again + COMPARE_GPU)))
    searches = precision not in _PLAIN
    importance = wishes.imatrix and searches
    quantize = QUANTIZE + (QUANTIZE_K / cores if searches else 0)
    seen = COMPARED + (windows if importance else 0)
    return Making(importance, round(2 * START + gb * (CONVERT + quantize + seen * WINDOW / cores)))


def planned(download, precision, hardware, wishes):
    """The download of what is to be made, with its recipe: made anew when that changes."""
    making = of(download["from"]["bytes"], precision, hardware, wishes)
    importance = ", imatrix" if making.importance else ""
    return {
        **download,
        "revision": download["revision"] + importance,
        "imatrix": making.importance,
        "seconds": making.seconds,
    }
