"""A bucket of an S3 store as a source: the real client, and a real gateway that checks its keys."""

import hashlib
import os
import socket
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "roles/plan/module_utils"))

from hosts.go import go_program
from r1_planner import sources
from r1_planner.catalogue import load
from r1_planner.units import PlanError

GATEWAY = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"  # two minutes to build
KEY, SECRET = "reader", "the-secret-of-the-test"
WEIGHTS = os.urandom(3_000_000)
FILES = {"config.json": b"{}", "weights/a b.safetensors": WEIGHTS}


@pytest.fixture(scope="session")
def gateway() -> Path:
    return go_program(GATEWAY)


@pytest.fixture
def store(gateway, background, free_port, tmp_path):
    """The settings of a store whose bucket `models` has the files in folder r1."""
    folder = tmp_path / "store/models/r1"
    for name, body in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)
    sums = [f"{hashlib.sha256(body).hexdigest()}  ./{name}\n" for name, body in FILES.items()]
    (folder / "SHA256SUMS").write_text("".join(sums))
    port = free_port()

    def ready() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    keys = {"ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET}
    argv = [gateway, "--port", f"127.0.0.1:{port}", "posix", tmp_path / "store"]
    background(argv, ready, env={**os.environ, **keys})
    return {
        "s3_endpoint": f"http://127.0.0.1:{port}",
        "s3_access_key_id": KEY,
        "s3_secret_access_key": SECRET,
    }


def bucket(*files: dict, folder: str = "r1") -> dict:
    repository = f"s3://models/{folder}" if folder else "s3://models"
    return {"source": "s3", "repository": repository, "revision": None, "files": list(files)}


def test_all_files_of_the_folder_in_pieces(store, model_files, tmp_path):
    answer = model_files(bucket(), piece_bytes=400_000, **store)
    assert answer.get("changed"), answer
    home = tmp_path / "models/m/q4_k_m"
    assert {name: (home / name).read_bytes() for name in FILES} == FILES
    assert answer["model_path"] == str(home)
    assert answer["bytes_fetched"] == sum(map(len, FILES.values()))
    assert not model_files(bucket(), **store)["changed"]


def test_the_list_of_hashes_is_believed_before_the_store(store, model_files, tmp_path):
    (tmp_path / "store/models/r1/config.json").write_bytes(b"[]")
    answer = model_files(bucket(), **store)
    for body in FILES["config.json"], b"[]":
        assert hashlib.sha256(body).hexdigest() in answer["msg"]
    assert not (tmp_path / "models/m/q4_k_m").exists()


def test_a_whole_bucket_without_hashes_is_held(store, entry, model_files, tmp_path):
    (tmp_path / "store/models/r1/SHA256SUMS").unlink()
    wanted = entry("r1/config.json", b"{}", pinned=False)
    assert model_files(bucket(wanted, folder=""), **store).get("changed")
    (tmp_path / "models/m/q4_k_m/r1/config.json").unlink()
    (tmp_path / "store/models/r1/config.json").write_bytes(b"[]")
    answer = model_files(bucket(wanted, folder=""), **store)
    assert hashlib.sha256(b"{}").hexdigest() in answer["msg"]


@pytest.mark.parametrize(
    ("key", "secret", "error"),
    [("", "", "AccessDenied"), (KEY, "another", "SignatureDoesNotMatch")],
    ids=["none", "wrong"],
)
def test_a_key_that_may_not_read_is_refused(key, secret, error, store, model_files):
    keys = {"s3_access_key_id": key, "s3_secret_access_key": secret}
    answer = model_files(bucket(), **{**store, **keys})
    assert "s3 s3://models/r1: " in answer["msg"] and f"({error})" in answer["msg"]
    assert "Set model_s3_access_key_id and model_s3_secret_access_key to a key" in answer["msg"]


def test_refusals_say_what_to_do(store, entry, model_files):
    answer = model_files(bucket(folder="none"), **store)
    assert "there is no file in s3://models/none" in answer["msg"]
    answer = model_files({**bucket(), "repository": "s3://missing/r1"}, **store)
    assert "NoSuchBucket" in answer["msg"] and "Check repository" in answer["msg"]
    answer = model_files(bucket(entry("none.gguf", b"x")), **store)
    assert "there is no file none.gguf" in answer["msg"]


def test_settings_lead_there_and_the_secret_shows_nowhere(store, entry, play):
    download = bucket(entry("weights/a b.safetensors", WEIGHTS))
    settings = {
        "s3_endpoint": store["s3_endpoint"],
        "model_s3_access_key_id": KEY,
        "model_s3_secret_access_key": SECRET,
    }
    refused = play(download)
    assert "http://127.0.0.1:1 does not answer" in refused["out"]
    assert "set s3_endpoint to a mirror" in refused["out"]
    answer = play(download, "-vvv", **settings)
    assert answer["rc"] == 0 and answer["changed"], answer["out"]
    assert SECRET not in answer["out"]
    assert (play.home / "weights/a b.safetensors").read_bytes() == WEIGHTS


def own_entry(repository: str) -> dict:
    return {"mine": {"source": "s3", "repository": repository, "file": "m.gguf",
                     "precision": "q4_k_m", "bytes": 10**9}}  # fmt: skip


def test_an_entry_of_ones_own():
    model = load({}, own_entry("s3://models/r1"))["mine"]
    (source,) = model.precisions["q4_k_m"]["sources"]
    download = sources.download_of(model, "q4_k_m", source)
    assert (download["source"], download["repository"]) == ("s3", "s3://models/r1")


@pytest.mark.parametrize(
    "url", ["models/r1", "https://minio.lan/models", "s3://", "s3://Models/r1"]
)
def test_another_kind_of_address_is_refused(url):
    with pytest.raises(PlanError) as caught:
        load({}, own_entry(url))
    assert f"repository '{url}' of source s3 is not s3://BUCKET/FOLDER" in str(caught.value)
    assert "the store's address goes into s3_endpoint" in str(caught.value)
