"""The module ollama_release, with the real program; GitHub is a stand-in on loopback."""

import hashlib
import http.server
import os
import shutil
import subprocess
import threading
import typing

import pytest

pytestmark = pytest.mark.timeout(1200)  # the first use builds Ollama


@pytest.fixture(scope="module")
def archives(ollama_binary, tmp_path_factory):
    """The official archive's layout (bin/, lib/), packed both ways."""
    root = tmp_path_factory.mktemp("archives")
    (root / "tree/bin").mkdir(parents=True)
    (root / "tree/lib/ollama").mkdir(parents=True)
    shutil.copy(ollama_binary, root / "tree/bin/ollama")
    (root / "tree/lib/ollama/README").write_text("libraries\n")
    for option, name in (("--zstd", "ollama.tar.zst"), ("--gzip", "ollama.tgz")):
        tar = ["tar", "--create", option, "--file", root / name, "-C", root / "tree", "bin", "lib"]
        subprocess.run(tar, check=True)
    shutil.rmtree(root / "tree")
    return root


@pytest.fixture
def site(archives):
    """Stand-in for the release site: serves ranges, and cuts the first answers short."""

    class Handler(http.server.BaseHTTPRequestHandler):
        cuts = 0
        asked: typing.ClassVar = []

        def do_GET(self):
            path = archives / self.path.strip("/")
            start = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-")
            Handler.asked.append(int(start))
            if not path.exists():
                self.send_error(404)
                return
            body = path.read_bytes()[int(start) :]
            self.send_response(206 if int(start) else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if Handler.cuts:
                Handler.cuts -= 1
                body = body[: 1 << 20]
            self.wfile.write(body)

        def log_message(self, *_arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Handler.url = f"http://127.0.0.1:{server.server_port}"
    yield Handler
    server.shutdown()


@pytest.mark.parametrize("kind", ["program", "ollama.tar.zst", "ollama.tgz"])
def test_a_brought_file_is_installed_once(module, ollama_binary, archives, tmp_path, kind):
    brought = tmp_path / "brought"
    shutil.copy(ollama_binary if kind == "program" else archives / kind, brought)
    arguments = {"path": tmp_path / "opt/one", "archive": brought}

    planned = module("ollama_release", check=True, **arguments)
    assert planned["changed"] and not (tmp_path / "opt").exists()

    first = module("ollama_release", **arguments)
    assert first["changed"] and first["version"] == "0.24.0"
    assert (tmp_path / "opt/one/lib/ollama/README").exists() == (kind != "program")
    assert not brought.exists()

    second = module("ollama_release", **arguments)
    assert not second["changed"] and second["version"] == "0.24.0"


def test_a_download_is_resumed_and_checked(module, archives, site, tmp_path):
    release = archives / "ollama.tar.zst"
    digest = hashlib.sha256(release.read_bytes()).hexdigest()
    site.cuts, site.asked[:] = 2, []
    url = f"{site.url}/{release.name}"
    done = module("ollama_release", path=tmp_path / "opt/one", url=url, sha256=digest)
    assert done["changed"], done
    assert site.asked == [0, 1 << 20, 2 << 20]
    assert [one.name for one in (tmp_path / "opt").iterdir()] == ["one"]


def test_another_file_than_the_pinned_one_is_refused(module, archives, site, tmp_path):
    url = f"{site.url}/ollama.tgz"
    done = module("ollama_release", path=tmp_path / "opt/one", url=url, sha256="0" * 64)
    found = hashlib.sha256((archives / "ollama.tgz").read_bytes()).hexdigest()
    assert done["failed"]
    assert found in done["msg"] and "0" * 64 in done["msg"] and "ollama_archive" in done["msg"]
    assert list((tmp_path / "opt").iterdir()) == []


def test_a_missing_release_says_what_to_do(module, site, tmp_path):
    url = f"{site.url}/nothing"
    done = module("ollama_release", path=tmp_path / "opt/one", url=url, sha256="0" * 64)
    assert "404" in done["msg"] and "ollama_archive_url" in done["msg"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"hello", "neither a .tar.zst, a .tgz nor a program"),
        (b"\x28\xb5\x2f\xfdbroken", "Unpacking"),
        (b"\x7fELFbroken", "does not run here"),
    ],
)
def test_a_file_that_is_no_release_is_refused(module, tmp_path, content, words):
    (tmp_path / "brought").write_bytes(content)
    done = module("ollama_release", path=tmp_path / "opt/one", archive=tmp_path / "brought")
    assert done["failed"] and words in done["msg"], done
    assert not (tmp_path / "opt/one").exists()


def test_an_installation_cut_short_heals(module, ollama_binary, tmp_path):
    for age, leftover in enumerate((".unpack-abc", "old", "older")):
        (tmp_path / "opt" / leftover / "bin").mkdir(parents=True)
        os.utime(tmp_path / "opt" / leftover, (1000 - age, 1000 - age))
    (tmp_path / "opt/.download-123456789abc").write_text("half")
    shutil.copy(ollama_binary, tmp_path / "brought")
    done = module("ollama_release", path=tmp_path / "opt/new", archive=tmp_path / "brought")
    assert done["changed"], done
    left = {one.name for one in (tmp_path / "opt").iterdir()}
    assert left == {"new", "old"}, "the release before stays, for a way back"
