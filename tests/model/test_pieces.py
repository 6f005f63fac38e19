"""A large file comes in pieces, several at a time, and any source goes on with what is there."""

import json
import os
import struct
import threading
import time
from contextlib import contextmanager

import pytest

PIECE = 400_000
WEIGHTS = os.urandom(3_000_000)
NUMBERS = "<8q"
SETTING = {
    "huggingface": "huggingface_endpoint",
    "modelscope": "modelscope_endpoint",
    "ollama": "ollama_registry",
}


@pytest.fixture
def hub(start_hub):
    return start_hub({"m.gguf": WEIGHTS})


@pytest.fixture
def wanted(entry):
    """Return a function that gives a download of the file, and the settings that lead there."""

    def make(source: str, hub) -> tuple[dict, dict]:
        places = {"http": f"{hub.url}/folder", "ollama": "n"}
        download = {
            "source": source,
            "repository": places.get(source, "o/n"),
            "revision": "tag" if source == "ollama" else None,
            "files": [entry("m.gguf", WEIGHTS)],
        }
        return download, {SETTING[source]: hub.url} if source in SETTING else {}

    return make


@pytest.fixture
def fetched(tmp_path, model_files):
    """Return a function that fetches in small pieces, and compares what came."""

    def run(download: dict, **more) -> dict:
        answer = model_files(download, piece_bytes=PIECE, **more)
        assert answer.get("changed"), answer
        assert (tmp_path / "models/m/q4_k_m/m.gguf").read_bytes() == WEIGHTS
        assert not (tmp_path / "models/m/.q4_k_m.partial").exists()
        return answer

    return run


@pytest.fixture
def target(load_plugin, tmp_path):
    """Return a function that opens the file on its way, as the fetching program does."""

    def make(piece: int = PIECE):
        file = {"path": "m.gguf", "bytes": len(WEIGHTS), "folder": str(tmp_path)}
        return load_plugin("roles/model/files/fetch.py").Target(file, piece)

    return make


@pytest.mark.parametrize("source", [*SETTING, "http"])
def test_each_byte_comes_once_through_cut_connections(source, hub, wanted, fetched):
    hub.cut_after = [100_000, 250_000]
    download, endpoint = wanted(source, hub)
    assert fetched(download, **endpoint)["bytes_fetched"] == len(WEIGHTS)
    assert len(WEIGHTS) <= hub.sent <= 1.05 * len(WEIGHTS)
    asked = [line for line in hub.requests if line.startswith("GET")]
    assert len(asked) >= 8


@pytest.mark.parametrize(("connections", "least"), [(1, 1), (3, 2)])
def test_as_many_connections_as_wanted(connections, least, load_plugin, hub, tmp_path):
    hub.rate = 2_000_000
    module = load_plugin("roles/model/files/fetch.py")
    lock, now, seen = threading.Lock(), [], []

    class Counted(module.Http):
        @contextmanager
        def body(self, target, headers):
            with super().body(target, headers) as opened:
                with lock:
                    now.append(headers["Range"])
                    seen.append(len(now))
                yield opened
                with lock:
                    now.remove(headers["Range"])

    file = {"path": "m.gguf", "bytes": len(WEIGHTS), "folder": str(tmp_path)}
    file["url"] = f"{hub.url}/folder/m.gguf"
    ask = {"token": "", "rate": 0, "piece": PIECE, "connections": connections, "files": [file]}
    assert module.fetch_all(Counted(ask), ask) == {"done": True}
    assert (tmp_path / "m.gguf").read_bytes() == WEIGHTS
    assert least <= max(seen) <= connections and len(seen) == 8


@pytest.mark.parametrize(
    ("first", "second"), [("huggingface", "modelscope"), ("modelscope", "http"), ("http", "ollama")]
)
def test_pieces_of_a_killed_run_are_gone_on_with_from_another_source(
    first, second, hub, wanted, fetched, killed_run, tmp_path
):
    hub.rate = 150_000
    download, endpoint = wanted(first, hub)
    killed_run(hub, 1_500_000, download, piece_bytes=PIECE, **endpoint)
    told = json.loads((tmp_path / "models/m/.q4_k_m.partial/progress.json").read_text())
    assert 100_000 < told["done"] <= hub.sent and told["total"] == len(WEIGHTS)
    time.sleep(0.5)  # what is under way in the stand-in's sockets
    hub.rate, before = None, hub.sent
    download, endpoint = wanted(second, hub)
    fetched(download, **endpoint)
    assert hub.sent - before < len(WEIGHTS) - 900_000


@pytest.mark.parametrize("source", [*SETTING, "http"])
def test_a_server_that_knows_no_ranges_sends_the_whole(source, hub, wanted, fetched):
    hub.ranges, hub.rate = False, 6_000_000
    download, endpoint = wanted(source, hub)
    fetched(download, **endpoint)


def test_a_dead_source_is_not_asked_for_every_piece(hub, wanted, model_files):
    hub.refuse = [503] * 9999
    download, endpoint = wanted("ollama", hub)
    answer = model_files(download, piece_bytes=1000, stall_seconds=1, **endpoint)
    assert "m.gguf: HTTPError: HTTP Error 503" in answer["msg"]
    assert len(hub.requests) < 1000  # of three times 3000


def test_a_source_with_another_file_is_left_at_once(hub, wanted, model_files):
    hub.bodies["m.gguf"], hub.rate = WEIGHTS + b"more", 1_000_000
    download, endpoint = wanted("modelscope", hub)
    answer = model_files(download, piece_bytes=PIECE, stall_seconds=1, **endpoint)
    assert "m.gguf: ValueError: it has 3000004 bytes there, not 3000000" in answer["msg"]
    assert "Check the network and modelscope_endpoint" in answer["msg"]
    assert hub.sent < len(WEIGHTS)


def test_a_source_that_sends_another_piece_is_not_believed(load_plugin, hub, tmp_path, target):
    module = load_plugin("roles/model/files/fetch.py")
    source = module.Http({"token": ""})
    part, going = target(), module.Pace(0)
    part.url = f"{hub.url}/folder/m.gguf"
    right = module.part_of
    module.part_of = lambda text: (0, right(text)[1])
    with pytest.raises(ValueError, match="asked for the bytes from 400000 on"):
        module.fetch(source, part, 1, going)
    assert part.have == [0] * 8


def test_what_is_there_is_counted_by_the_numbers_behind_it(target, tmp_path):
    part = target()
    part.put(PIECE, WEIGHTS[PIECE : PIECE + 1000])
    part.put(0, WEIGHTS[: PIECE // 2])
    again = target()
    assert again.have == [PIECE // 2, 1000, 0, 0, 0, 0, 0, 0]
    again.put(PIECE // 2, WEIGHTS[PIECE // 2 : PIECE + 1000])  # over a border
    assert again.have[:2] == [PIECE, 1000]
    again.put(PIECE + 1000, WEIGHTS[PIECE + 1000 :])
    again.finish()
    assert (tmp_path / "m.gguf").read_bytes() == WEIGHTS
    assert not (tmp_path / "m.gguf.incomplete").exists()


def test_a_beginning_without_numbers_counts(target, tmp_path):
    (tmp_path / "m.gguf.incomplete").write_bytes(WEIGHTS[:1_000_000])
    assert target().have == [PIECE, PIECE, 200_000, 0, 0, 0, 0, 0]


def test_pieces_of_another_size_are_thrown_away(target, tmp_path):
    target().put(0, WEIGHTS[:1000])
    assert target(PIECE * 2).have == [0, 0, 0, 0]
    assert target(PIECE * 2).have == [0, 0, 0, 0]


def test_numbers_that_outlived_their_bytes_do_not_count(target, tmp_path):
    """After a power cut a file system may have kept the numbers and lost the blocks."""
    with (tmp_path / "m.gguf.incomplete").open("wb") as stream:
        stream.write(WEIGHTS[:PIECE])
        stream.seek(len(WEIGHTS))
        stream.write(struct.pack(NUMBERS, *[PIECE] * 7, 200_000))
    have = target().have
    assert have[0] == PIECE
    assert sum(have[2:]) < 5000, have  # the last block on disk is shared with the numbers
