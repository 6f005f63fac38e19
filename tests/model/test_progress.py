"""What a person sees while a model is fetched."""

import pytest


@pytest.fixture
def meter(load_plugin):
    module = load_plugin("roles/model/action_plugins/model_files.py")
    clock = iter(range(0, 1000, 4))
    return module.Meter("deepseek-r1-1.5b", lambda: next(clock))


def state(done: int) -> dict:
    return {"phase": "fetching", "source": "modelscope", "done": done, "total": 1_117_320_512}


def test_rate_and_time_left(meter):
    assert meter.line(state(328_000_000)) == "deepseek-r1-1.5b: 328 of 1,117 MB (29 %)"
    assert meter.line(state(412_000_000)) == (
        "deepseek-r1-1.5b: 412 of 1,117 MB (36 %), 21.0 MB/s, 34 s left"
    )
    assert meter.line(state(412_400_000)).endswith("10.6 MB/s, 1 min 7 s left")


def test_other_phases_are_said_once(meter):
    installing = {"phase": "installing", "source": "modelscope"}
    assert meter.line(installing) == "deepseek-r1-1.5b: installing the client of modelscope"
    assert meter.line(installing) is None
    assert meter.line({"phase": "checking"}) == "deepseek-r1-1.5b: checking SHA-256"
    assert meter.line({}) is None
