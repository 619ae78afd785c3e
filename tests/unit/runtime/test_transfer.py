"""Large files: resumed, verified, renamed into place; pods that share a directory do not destroy each other's files."""

import errno
import hashlib
import logging
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_runtime.contract.result import Exit, StepError
from finetune_runtime.sources.content import RemoteFile, digest
from finetune_runtime.sources.transfer import STATE, Figures, Part, fetch

CONTENT = random.Random(6).randbytes(300_000)
SMALL = b"{}"
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
GIT = "git:9e26dfeeb6e641a33dae4961196235bdb965b21b"  # of {}
WEIGHTS = RemoteFile("model.safetensors", len(CONTENT), SHA256)
CONFIG = RemoteFile("config.json", 2, GIT)
UNKNOWN = RemoteFile("model.safetensors", len(CONTENT), etag='"v1"')
CONTENTS = {"model.safetensors": CONTENT, "config.json": SMALL}


class Source:
    """Gives files in pieces. `reads`: (path, start) of each; `breaks_at`: bytes of a file after which the line breaks, once."""

    def __init__(self, contents: dict[str, bytes] | None = None, breaks_at: int | None = None) -> None:
        self.contents, self.breaks_at = contents or CONTENTS, breaks_at
        self.reads: list[tuple[str, int]] = []

    def __call__(self, file: RemoteFile, start: int, part: Part) -> None:
        self.reads.append((file.path, start))
        for at in range(start, len(self.contents[file.path]), 10_000):
            if self.breaks_at is not None and at >= self.breaks_at:
                self.breaks_at = None
                raise ConnectionResetError
            part.write(self.contents[file.path][at : at + 10_000])


def parts(directory: Path) -> list[Path]:
    return list((directory / STATE).glob("*.part"))


def test_files_come_once_and_are_verified_after_that(tmp_path: Path) -> None:
    source = Source()
    first = fetch("hf://o/m", [WEIGHTS, CONFIG], tmp_path, source)
    again = fetch("hf://o/m", [WEIGHTS, CONFIG], tmp_path, source)
    assert {name: (tmp_path / name).read_bytes() for name in CONTENTS} == CONTENTS
    assert sorted(source.reads) == [("config.json", 0), ("model.safetensors", 0)]
    assert (first.fetched, first.resumed) == (300_002, 0)
    assert (again.files, again.size, again.fetched, again.resumed) == (2, 300_002, 0, 0)
    assert not parts(tmp_path)


def test_an_interrupted_fetch_goes_on_where_it_stopped(tmp_path: Path) -> None:
    source = Source(breaks_at=120_000)
    with pytest.raises(ConnectionResetError):
        fetch("hf://o/m", [WEIGHTS], tmp_path, source)
    assert not (tmp_path / "model.safetensors").exists()
    figures = fetch("hf://o/m", [WEIGHTS], tmp_path, source)
    assert source.reads == [("model.safetensors", 0), ("model.safetensors", 120_000)]
    assert (figures.fetched, figures.resumed) == (180_000, 120_000)
    assert (tmp_path / "model.safetensors").read_bytes() == CONTENT


def test_what_is_left_of_another_version_is_not_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError):
        fetch("s3://b/m", [UNKNOWN], tmp_path, Source(breaks_at=120_000))
    newer = RemoteFile(UNKNOWN.path, UNKNOWN.size, etag='"v2"')
    source = Source({UNKNOWN.path: CONTENT[::-1]})
    assert fetch("s3://b/m", [newer], tmp_path, source).resumed == 0
    assert (tmp_path / UNKNOWN.path).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("file", [WEIGHTS, UNKNOWN], ids=["the source tells the digest", "the digest of the first fetch is remembered"])
def test_a_damaged_file_is_fetched_again(tmp_path: Path, file: RemoteFile, caplog: pytest.LogCaptureFixture) -> None:
    source = Source()
    fetch("s3://b/m", [file], tmp_path, source)
    damaged = bytearray(CONTENT)
    damaged[77] ^= 1
    (tmp_path / file.path).write_bytes(damaged)
    figures = fetch("s3://b/m", [file], tmp_path, source)
    assert (tmp_path / file.path).read_bytes() == CONTENT
    assert (figures.fetched, figures.resumed) == (300_000, 0)
    assert f"{tmp_path / file.path} is damaged: it is fetched anew" in caplog.text


def test_a_damaged_part_is_begun_anew(tmp_path: Path) -> None:
    source = Source(breaks_at=120_000)
    with pytest.raises(ConnectionResetError):
        fetch("hf://o/m", [WEIGHTS], tmp_path, source)
    (part,) = parts(tmp_path)
    part.write_bytes(bytes(120_000))  # as after a crash of the node
    assert fetch("hf://o/m", [WEIGHTS], tmp_path, source).fetched == 480_000
    assert source.reads[1:] == [("model.safetensors", 120_000), ("model.safetensors", 0)]
    assert (tmp_path / "model.safetensors").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("file", "sent", "case"),
    [
        (WEIGHTS, CONTENT[::-1], "another content"),
        (UNKNOWN, CONTENT[:-1], "fewer bytes than listed"),
        (CONFIG, b"[]", "another small file, which git's name proves"),
    ],
)
def test_what_is_not_as_listed_is_refused_and_not_kept(tmp_path: Path, file: RemoteFile, sent: bytes, case: str) -> None:
    with pytest.raises(StepError, match=rf"{file.path} of hf://o/m is not what its source lists \({file.size} bytes") as caught:
        fetch("hf://o/m", [file], tmp_path, Source({file.path: sent}))
    assert caught.value.code is Exit.STORAGE_UNAVAILABLE, case
    assert not (tmp_path / file.path).exists()
    assert not parts(tmp_path)


def test_a_part_that_is_too_long_is_begun_anew(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError):
        fetch("s3://b/m", [UNKNOWN], tmp_path, source := Source(breaks_at=50_000))
    (part,) = parts(tmp_path)
    part.write_bytes(bytes(len(CONTENT) + 1))
    assert fetch("s3://b/m", [UNKNOWN], tmp_path, source).fetched == 300_000
    assert (tmp_path / UNKNOWN.path).read_bytes() == CONTENT


def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    fetch("s3://b/m", [RemoteFile("merges.txt", 0, etag="e")], tmp_path, Source({"merges.txt": b""}))
    assert (tmp_path / "merges.txt").read_bytes() == b""


def test_a_volume_that_is_too_small_is_named_before_anything_is_fetched(tmp_path: Path) -> None:
    source = Source()
    with pytest.raises(
        StepError, match=r"hf://o/m needs 4096\.0 GiB more, and its volume has .* free: give the pod a larger scratch volume or the model cache"
    ):
        fetch("hf://o/m", [RemoteFile("model.safetensors", 2**42)], tmp_path, source)
    assert source.reads == []


def test_a_volume_that_fills_up_is_named(tmp_path: Path) -> None:
    def read(_file: RemoteFile, _start: int, _part: Part) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with pytest.raises(StepError, match="hf://o/m needs more than its volume has room for"):
        fetch("hf://o/m", [WEIGHTS], tmp_path, read)


def test_a_fetch_can_begin_its_part_anew(tmp_path: Path) -> None:
    """As the hub's client does when a server does not know ranges."""
    (tmp_path / STATE).mkdir()
    with pytest.raises(ConnectionResetError):
        fetch("hf://o/m", [WEIGHTS], tmp_path, Source(breaks_at=50_000))

    def read(_file: RemoteFile, _start: int, part: Part) -> None:
        part.seek(0)
        part.truncate()
        part.write(CONTENT)

    assert fetch("hf://o/m", [WEIGHTS], tmp_path, read).fetched == 300_000
    assert (tmp_path / "model.safetensors").read_bytes() == CONTENT


def _slow(directory: Path, log: Path) -> None:
    def read(file: RemoteFile, start: int, part: Part) -> None:
        for at in range(start, file.size, 20_000):
            time.sleep(0.02)
            part.write(CONTENT[at : at + 20_000])
            with log.open("a") as lines:
                lines.write(f"{at}\n")

    fetch("hf://o/m", [WEIGHTS], directory, read)


def _together(count: int, target: Callable[[Path, Path], None], directory: Path, log: Path) -> list[int | None]:
    processes = [multiprocessing.get_context("fork").Process(target=target, args=(directory, log)) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def test_of_pods_that_start_at_once_one_fetches_and_the_others_wait(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert _together(3, _slow, tmp_path / "cache", log) == [0, 0, 0]
    assert (tmp_path / "cache/model.safetensors").read_bytes() == CONTENT
    assert len(log.read_text().splitlines()) == 15  # each piece came once


def test_the_next_pod_goes_on_when_the_one_that_fetches_is_killed(tmp_path: Path) -> None:
    log, directory = tmp_path / "log", tmp_path / "cache"
    context = multiprocessing.get_context("fork")
    first, second = (context.Process(target=_slow, args=(directory, log)) for _ in range(2))
    first.start()
    while not log.exists() or len(log.read_text().splitlines()) < 4:
        time.sleep(0.005)
    second.start()
    first.kill()
    first.join(60)
    second.join(60)
    assert second.exitcode == 0
    assert (directory / "model.safetensors").read_bytes() == CONTENT
    assert len(log.read_text().splitlines()) in (15, 16)  # the piece that it was killed with may have been written, but not logged


def test_without_locks_the_content_is_right_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    assert _together(3, _slow, tmp_path / "cache", tmp_path / "log") == [0, 0, 0]
    assert (tmp_path / "cache/model.safetensors").read_bytes() == CONTENT
    with caplog.at_level(logging.WARNING):
        fetch("hf://o/m", [CONFIG], tmp_path / "cache", Source())
    assert "config.json cannot be locked (No locks available)" in caplog.text


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        (Figures(14, 16 * 2**30, 3 * 2**30, 2 * 2**30, 40.2), "16.0 GiB in 14 files: 3.0 GiB fetched in 40 s, 2.0 GiB left by an interrupted fetch, 11.0 GiB there and verified"),
        (Figures(3, 5 * 2**20, 0, 0, 0.1), "5.0 MiB in 3 files: nothing to fetch, 5.0 MiB there and verified"),
        (Figures(3, 900, 900, 0, 0.1), "900 bytes in 3 files: 900 bytes fetched in 0 s"),
    ],
)  # fmt: skip
def test_figures_are_told(figures: Figures, text: str) -> None:
    assert str(figures) == text


def test_digests_are_those_of_sha256sum_and_git(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"hello\n")
    assert digest(tmp_path / "a", "git") == "git:ce013625030ba8dba906f756967f9e9ca394464a"
    assert digest(tmp_path / "a", "sha256") == "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
