"""What a person sees while a model is fetched, on the screen and in a file."""

import json

import pytest

TOTAL = 1_117_320_512


@pytest.fixture
def meter(load_plugin):
    return load_plugin("roles/model/action_plugins/model_files.py").Meter("deepseek-r1-1.5b")


@pytest.fixture
def progress(load_plugin, tmp_path):
    """Return a function that tells how many bytes came, 4 s after the last time; the file."""
    clock = iter(range(4, 1000, 4))
    path = tmp_path / "progress.json"
    module = load_plugin("roles/model/library/model_files.py")
    told = module.Progress(path, lambda: next(clock))

    def tell(done: int, phase: str = "fetching") -> dict:
        told.tell(phase=phase, source="modelscope", done=done, total=TOTAL)
        return json.loads(path.read_text())

    return tell


def test_rate_and_time_left(meter, progress):
    assert meter.line(progress(328_000_000)) == "deepseek-r1-1.5b: 328 of 1,117 MB (29 %)"
    state = progress(412_000_000)
    assert (state["bytes_per_second"], state["seconds_left"]) == (21_000_000, 34)
    assert meter.line(state) == ("deepseek-r1-1.5b: 412 of 1,117 MB (36 %), 21.0 MB/s, 34 s left")
    assert meter.line(progress(412_400_000)).endswith("10.6 MB/s, 1 min 7 s left")


def test_a_pace_is_told_only_while_bytes_come(progress):
    progress(1_000_000)
    assert progress(1_000_000)["bytes_per_second"] is None
    assert progress(9_000_000)["bytes_per_second"] == 1_000_000
    assert progress(9_000_000, "checking")["bytes_per_second"] is None
    assert progress(10_000_000)["seconds_left"] is None


def test_other_phases_are_said_once(meter):
    installing = {"phase": "installing", "source": "modelscope"}
    assert meter.line(installing) == "deepseek-r1-1.5b: installing the client of modelscope"
    assert meter.line(installing) is None
    assert meter.line({"phase": "checking"}) == "deepseek-r1-1.5b: checking SHA-256"
    assert meter.line({}) is None


def test_every_tenth_of_a_step_is_said_once(meter):
    def line(phase, done, total):
        return meter.line({"phase": phase, "done": done, "total": total})

    assert line("converting", 0, 3_000) == "deepseek-r1-1.5b: converting to one file of 16 bits"
    assert line("converting", 299, 3_000) is None
    assert line("converting", 700, 3_000).endswith("one file of 16 bits (20 %)")
    assert line("converting", 899, 3_000) is None
    assert line("weighing", 0, 13) == "deepseek-r1-1.5b: computing the importance matrix"
    assert line("weighing", 12, 13).endswith("matrix (90 %)")
    assert line("comparing", 0, 0).endswith("comparing the result with the checkpoint")
    assert line("checking", TOTAL, TOTAL) == "deepseek-r1-1.5b: checking SHA-256"
