"""Units and the planner's one error."""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


class PlanError(ValueError):
    """Wrong input. `problems` are sentences naming the setting, the value and the fix."""

    def __init__(self, problems):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("; ".join(self.problems))


def gib(count):
    """Bytes as a short figure for a sentence: 11700000000 -> '10.9 GiB'."""
    if count < 0.1 * GIB:
        return f"{count / MIB:.0f} MiB"
    return f"{count / GIB:.1f} GiB"


def duration(seconds):
    """Seconds as a short figure for a sentence: 8160 -> '2 h 16 min'."""
    if seconds < 60:
        return f"{seconds} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def number(count):
    """An integer with thousands separators: 28176 -> '28,176'."""
    return f"{int(count):,}"


def round_down(count, step):
    return int(count) // step * step


def number_of(source, key, where, problems, default=None, least=1):
    """The whole number under a key; a sentence in problems where it is none."""
    value = source.get(key, default)
    found = whole(value, least)
    if found is None:
        problems.append(f"{where}{key}: {value!r} is not a whole number of at least {least}.")
        return least
    return found


def whole(value, least):
    """Return the whole number a setting stands for, or None when it is none of at least `least`."""
    try:
        number = int(str(value))
    except ValueError:
        return None
    return None if isinstance(value, bool) or number < least else number
