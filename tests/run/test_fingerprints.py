"""Digests of files: whole or sampled, remembered or not."""

from __future__ import annotations

import hashlib
import json
import os
import struct

import numpy as np
import pytest

from salt_jax.run import fingerprints
from salt_jax.run.fingerprints import of_file


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Files of kilobytes are large, and what is remembered lies in a folder of the test's own."""
    for name, value in {"WHOLE": 4096, "REMEMBERED": 2048, "BLOCK": 16, "BLOCKS": 64, "HEAD": 256}.items():
        monkeypatch.setattr(fingerprints, name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "salt-jax" / "fingerprints"


def content(size: int) -> bytearray:
    return bytearray(np.random.default_rng(0).bytes(size))


def tensors(sizes: list[int]) -> tuple[bytes, bytearray]:
    """The header and the data of a safetensors file with tensors of so many bytes."""
    ends = np.cumsum(sizes).tolist()
    header = {
        f"t{i}": {"dtype": "U8", "shape": [size], "data_offsets": [end - size, end]}
        for i, (size, end) in enumerate(zip(sizes, ends, strict=True))
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text, content(sum(sizes))


def test_a_digest_is_of_the_content_alone(tmp_path):
    for name in ("a", "folder/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content(1000))
    (tmp_path / "link").symlink_to(tmp_path / "a")
    expected = hashlib.sha256(content(1000)).hexdigest()
    assert {of_file(tmp_path / name) for name in ("a", "folder/b", "link")} == {expected}
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "cache.txt")
    (tmp_path / "cache.txt").write_bytes(content(1001))
    assert of_file(tmp_path / "link") != expected


@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("where", [0, 100, 4095, 20_000 - 1])
def test_a_byte_that_is_read_tells(where, sampled, tmp_path):
    before = content(20_000)
    (tmp_path / "a").write_bytes(before)
    one = of_file(tmp_path / "a", sampled=sampled)
    before[where] ^= 1
    (tmp_path / "a").write_bytes(before)
    read = not sampled or where != 4095  # between two blocks
    assert (of_file(tmp_path / "a", sampled=sampled) != one) == read
    (tmp_path / "a").write_bytes(before + b"0")
    assert of_file(tmp_path / "a", sampled=sampled) != one
    assert one.startswith("sampled:") == sampled


def test_every_tensor_is_sampled(tmp_path):
    header, data = tensors([3000, 10, 3000])
    digests = set()
    for at in (None, 0, 1500, 2999, 3005, 3010, 6009):  # begin, middle and end of each tensor, the short one whole
        changed = bytearray(data)
        if at is not None:
            changed[at] ^= 1
        (tmp_path / "a.safetensors").write_bytes(header + changed)
        digests.add(of_file(tmp_path / "a.safetensors"))
    assert len(digests) == 7
    (tmp_path / "a.safetensors").write_bytes(header.replace(b'"t2"', b'"u2"') + data)
    assert of_file(tmp_path / "a.safetensors") not in digests


@pytest.mark.parametrize(
    "header",
    [
        b"\xff" * 8,
        *(struct.pack("<Q", len(t)) + t for t in (b"[1]", b'{"a": 1}', b'{"a": {"data_offsets": [0, 99999]}}')),
    ],
)
def test_a_file_of_another_kind_is_sampled_by_its_size(header, tmp_path):
    (tmp_path / "a").write_bytes(header + content(9000))
    assert of_file(tmp_path / "a").startswith("sampled:")


@pytest.mark.parametrize("what", ["folder", "pipe", "nothing"])
def test_what_is_no_file(what, tmp_path):
    path = tmp_path / "x"
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    with pytest.raises(OSError, match="x"):
        of_file(path)




def test_a_large_file_is_read_once_and_a_small_one_always(tmp_path, small, monkeypatch):
    reads = []
    whole = fingerprints._whole
    monkeypatch.setattr(fingerprints, "_whole", lambda path: reads.append(path.name) or whole(path))
    monkeypatch.setattr(fingerprints, "SETTLED", -1.0)
    for name, size in (("small", 100), ("large", 3000)):
        (tmp_path / name).write_bytes(content(size))
    digests = [of_file(tmp_path / name) for name in ("small", "large")]
    assert [of_file(tmp_path / name) for name in ("small", "large")] == digests
    assert reads == ["small", "large", "small"]
    assert len(list(small.iterdir())) == 1
    times = (tmp_path / "large").stat()
    (tmp_path / "large").write_bytes(content(3001)[1:])  # as long, with the same time
    os.utime(tmp_path / "large", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert of_file(tmp_path / "large") != digests[1]


def test_what_has_just_been_written_is_not_remembered(tmp_path, small):
    (tmp_path / "large").write_bytes(content(3000))
    of_file(tmp_path / "large")
    assert not small.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"size": 3000}', '{"size": 3000, "digest": 7}', "\0"])
def test_a_damaged_memory_is_made_anew(text, tmp_path, small, monkeypatch):
    monkeypatch.setattr(fingerprints, "SETTLED", -1.0)
    (tmp_path / "large").write_bytes(content(3000))
    digest = of_file(tmp_path / "large")
    (entry,) = small.iterdir()
    entry.write_text(text)
    assert of_file(tmp_path / "large") == digest
    assert json.loads(entry.read_text())["digest"] == digest


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "SETTLED", -1.0)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "large").write_bytes(content(3000))
    assert of_file(tmp_path / "large") == hashlib.sha256(content(3000)).hexdigest()
