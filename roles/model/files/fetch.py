"""Fetch a model's files from one source, several pieces at a time.

  fetch.py huggingface|modelscope|s3|http list|fetch

Runs in the environment of the source's client, http with the host's Python. Reads a request from
stdin: repository, revision, commit (whether to tell the revision's commit), token, connections,
rate (bytes a second of all connections together, 0 is no limit), piece (bytes), and files with
path, bytes, folder, url; of s3 also endpoint, region and key_id, whose secret is the token. Ends
with a line of JSON: what it lists, done, or error with path, status, errno and retry_after.

A file on its way is PATH.incomplete, with every piece in its place. Behind the file's last byte
stands one number of 64 bits for each piece: how many of its bytes are there. So any source goes
on where another one, or a killed run, stopped. A file without these numbers is a beginning.
"""

import json
import os
import struct
import sys
import threading
import time
import urllib.request
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from pathlib import Path

CHUNK = 1 << 16  # a killed client loses what is not yet a chunk
TIMEOUT = 30  # seconds without a byte


class Pace:
    """Holds all threads together to the rate: each block waits until its last byte is due."""

    def __init__(self, rate):
        self.rate, self.lock, self.due = rate, threading.Lock(), 0

    def __call__(self, count):
        if not self.rate:
            return
        with self.lock:
            self.due = due = max(self.due, time.monotonic()) + count / self.rate
        time.sleep(max(0, due - time.monotonic()))


class Target:
    """One file on its way."""

    def __init__(self, file, piece):
        self.name, self.bytes, self.url = file["path"], file["bytes"], file.get("url")
        self.path, self.piece = Path(file["folder"], file["path"]), piece
        self.part = self.path.with_name(self.path.name + ".incomplete")
        self.count = max(1, -(-self.bytes // piece))
        self.lock, self.in_one_stream = threading.Lock(), False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.handle = os.open(self.part, os.O_RDWR | os.O_CREAT, 0o644)
        self.have = self.found()
        os.pwrite(self.handle, struct.pack(f"<{self.count}q", *self.have), self.bytes)

    def found(self):
        noted = os.pread(self.handle, 8 * self.count + 1, self.bytes)
        if noted and len(noted) != 8 * self.count:
            os.ftruncate(self.handle, 0)  # pieces of another size
        if len(noted) == 8 * self.count:
            told = struct.unpack(f"<{self.count}q", noted)
        else:
            size = os.fstat(self.handle).st_size
            told = [size - number * self.piece for number in range(self.count)]
        return [self.on_disk(number, have) for number, have in enumerate(told)]

    def on_disk(self, number, have):
        """What a power cut left of a piece: the number may have outlived the bytes."""
        start = number * self.piece
        have = max(0, min(have, self.end(number) - start))
        try:
            return min(have, os.lseek(self.handle, start, os.SEEK_HOLE) - start) if have else 0
        except OSError:
            return have  # this file system does not tell

    def end(self, number):
        return min((number + 1) * self.piece, self.bytes)

    def note(self, number, have):
        self.have[number] = have
        os.pwrite(self.handle, struct.pack("<q", have), self.bytes + 8 * number)

    def missing(self, number):
        return number * self.piece + self.have[number], self.end(number)

    def put(self, at, block):
        """Write what follows on what is there; the number comes after the bytes."""
        while block:
            number = at // self.piece
            written = os.pwrite(self.handle, block[: self.end(number) - at], at)
            at, block = at + written, block[written:]
            self.note(number, at - number * self.piece)

    def finish(self):
        with self.lock:
            start_and_end = map(self.missing, range(self.count))
            if self.handle is None or any(start < end for start, end in start_and_end):
                return
            os.ftruncate(self.handle, self.bytes)
            os.close(self.handle)
            self.handle = None
            self.part.replace(self.path)

    def first_stream(self):
        """Whether this thread is the one to bring the whole file."""
        with self.lock:
            first, self.in_one_stream = not self.in_one_stream, True
        return first


class HuggingFace:
    def __init__(self, ask):
        self.ask, self.token = ask, ask["token"] or False

    def list_files(self):
        from huggingface_hub import HfApi

        api, revision = HfApi(token=self.token), self.ask["revision"]
        if self.ask["commit"]:
            revision = api.model_info(self.ask["repository"], revision=revision).sha
        tree = api.list_repo_tree(self.ask["repository"], recursive=True, revision=revision)
        files = [
            {
                "path": item.path,
                "bytes": item.size,
                "git": item.blob_id,
                "sha256": item.lfs.sha256 if item.lfs else None,
            }
            for item in tree
            if hasattr(item, "size")
        ]
        return {"files": files, "revision": revision}

    @contextmanager
    def body(self, target, headers):
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

        url = hf_hub_url(self.ask["repository"], target.name, revision=self.ask["revision"])
        headers = {**build_hf_headers(token=self.token), **headers}
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        # The one who asked us tries again.
        with http_stream_backoff(
            "GET", url, max_retries=0, headers=headers, timeout=timeout
        ) as response:
            hf_raise_for_status(response)
            yield response.status_code, response.headers, response.iter_bytes(CHUNK)


class ModelScope:
    def __init__(self, ask):
        from modelscope_hub import HubApi

        self.ask, self.api = ask, HubApi()

    def list_files(self):
        found = self.api.list_repo_files(
            self.ask["repository"],
            repo_type="model",
            revision=self.ask["revision"],
            recursive=True,
        )
        files = [
            {"path": item.path, "bytes": item.size, "git": None, "sha256": item.sha256 or None}
            for item in found
        ]
        return {"files": files, "revision": self.ask["revision"]}

    @contextmanager
    def body(self, target, headers):
        # Inside Alibaba's cloud these name the near way to the files.
        headers = {**self.api.downloader._build_download_headers(), **headers}
        with self.api.legacy.download_stream(
            self.ask["repository"], "model", target.name, self.ask["revision"], headers
        ) as response:
            yield response.status_code, response.headers, response.iter_content(CHUNK)


class S3:
    def __init__(self, ask):
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config

        self.bucket, _, folder = ask["repository"].removeprefix("s3://").partition("/")
        self.folder = folder.rstrip("/") + "/" if folder else ""
        session = boto3.Session(
            aws_access_key_id=ask["key_id"] or None,
            aws_secret_access_key=ask["token"] or None,
            region_name=ask["region"],
        )
        config = Config(
            # Without a key: the machine's own, as a cloud's instance has one, else nobody's.
            signature_version=None if session.get_credentials() else UNSIGNED,
            retries={"total_max_attempts": 1},  # the one who asked us tries again
            connect_timeout=TIMEOUT,
            read_timeout=TIMEOUT,
            max_pool_connections=ask["connections"],
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if ask["endpoint"] else "auto"},
        )
        self.client = session.client("s3", endpoint_url=ask["endpoint"] or None, config=config)

    def list_files(self):
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self.folder
        )
        files = [
            {"path": item["Key"][len(self.folder) :], "bytes": item["Size"], "git": None}
            for page in pages
            for item in page.get("Contents", [])
            if not item["Key"].endswith("/")
        ]
        sums = ""
        if any(file["path"] == "SHA256SUMS" for file in files):
            key = self.folder + "SHA256SUMS"
            body = self.client.get_object(Bucket=self.bucket, Key=key)["Body"]
            sums = body.read().decode("utf-8", "replace")
        return {"files": files, "revision": None, "sums": sums}

    @contextmanager
    def body(self, target, headers):
        asked = {"Range": headers["Range"]} if "Range" in headers else {}
        given = self.client.get_object(Bucket=self.bucket, Key=self.folder + target.name, **asked)
        with closing(given["Body"]) as stream:
            about = {
                "Content-Range": given.get("ContentRange", ""),
                "Content-Length": str(given["ContentLength"]),
            }
            status = given["ResponseMetadata"]["HTTPStatusCode"]
            yield status, about, stream.iter_chunks(CHUNK)


class Http:
    def __init__(self, ask):
        self.token = ask["token"]

    @contextmanager
    def body(self, target, headers):
        if self.token:
            headers = {**headers, "Authorization": "Bearer " + self.token}
        request = urllib.request.Request(target.url, headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            yield response.status, response.headers, iter(lambda: response.read(CHUNK), b"")


SOURCES = {"huggingface": HuggingFace, "modelscope": ModelScope, "s3": S3, "http": Http}


def fetch(source, target, number, pace):
    """Bring what is missing of one piece; of a source that knows no pieces, the whole file."""
    at, end = target.missing(number)
    if at == end or target.in_one_stream:
        return
    headers = {"Accept-Encoding": "identity"}
    if (at, end) != (0, target.bytes):
        headers["Range"] = f"bytes={at}-{end - 1}"
    with source.body(target, headers) as (status, answered, blocks):
        if status == 206:
            first, total = part_of(answered.get("Content-Range", ""))
            if first != at:
                raise ValueError(f"asked for the bytes from {at} on, it sent those from {first} on")
        elif "Range" in headers and not target.first_stream():
            return
        else:
            at, end = 0, target.bytes
            total = answered.get("Content-Length", "")
        if total.isdigit() and int(total) != target.bytes:
            raise ValueError(f"it has {total} bytes there, not {target.bytes}")
        for block in blocks:
            if at + len(block) > end:
                raise ValueError(f"more came than the {target.bytes} bytes that it has")
            pace(len(block))
            target.put(at, block)
            at += len(block)
    if at < end:
        raise EOFError(f"the connection was cut after {at} of {target.bytes} bytes")
    target.finish()


def part_of(content_range):
    """First byte and size of the whole, of "bytes FIRST-LAST/SIZE"."""
    span, _, total = content_range.removeprefix("bytes ").partition("/")
    first = span.partition("-")[0]
    return int(first) if first.isdigit() else None, total


def fetch_all(source, ask):
    pace, targets = Pace(ask["rate"]), [Target(file, ask["piece"]) for file in ask["files"]]
    with ThreadPoolExecutor(ask["connections"]) as pool:
        jobs = {
            pool.submit(fetch, source, target, number, pace): target
            for target in targets
            for number in range(target.count)
        }
        done, waiting = wait(jobs, return_when=FIRST_EXCEPTION)
        for job in waiting:
            job.cancel()
    for target in targets:
        target.finish()  # what an earlier run had whole
    failed = [job for job in done if job.exception()]
    return trouble(failed[0].exception(), jobs[failed[0]].name) if failed else {"done": True}


def trouble(error, path=None):
    response = getattr(error, "response", error)
    if isinstance(response, dict):  # of an error of botocore
        told = response.get("ResponseMetadata", {})
        status, headers = told.get("HTTPStatusCode"), told.get("HTTPHeaders", {})
    else:
        status = getattr(response, "status_code", None) or getattr(response, "code", None)
        headers = getattr(response, "headers", None) or {}
    after = str(headers.get("Retry-After") or headers.get("retry-after") or "")
    return {
        "error": f"{type(error).__name__}: {error}",
        "path": path,
        "status": status,
        "errno": getattr(error, "errno", None),
        "retry_after": int(after) if after.isdigit() else None,
    }


def main():
    ask = json.load(sys.stdin)
    try:
        source = SOURCES[sys.argv[1]](ask)
        answer = source.list_files() if sys.argv[2] == "list" else fetch_all(source, ask)
    except Exception as error:
        answer = trouble(error)
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
