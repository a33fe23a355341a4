"""Every way to damage a sealed folder is found, and the message names the file."""

from __future__ import annotations

import hashlib
import json

import pytest

from salt_jax.models import integrity

FILES = {"params/d/a": b"0123456789", "params/empty": b"", "state/b": bytes(range(256)) * 500, "data": b"{}"}
STAMP = {"jax": "0.0", "config": {"steps": 3}}


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "steps" / "12"
    for name, content in FILES.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(content)
    integrity.seal(made, 12, STAMP)
    return made


def test_the_manifest_holds_sizes_hashes_and_the_stamp(folder):
    assert integrity.fault(folder, 12) == ""
    content = json.loads((folder / integrity.MANIFEST).read_text())
    assert content["files"] == {
        name: {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()} for name, text in FILES.items()
    }
    assert integrity.stamp_of(folder) == STAMP
    assert sorted(path.name for path in folder.iterdir()) == ["data", "manifest.json", "params", "state"]


def damage(name, change):
    def do(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return do


def flip(content, place=-1):
    changed = bytearray(content)
    changed[place] ^= 1
    return bytes(changed)


DAMAGES = {
    "truncated": (damage("params/d/a", lambda x: x[:-3]), "is damaged: params/d/a has 7 bytes instead of 10"),
    "emptied": (damage("state/b", lambda x: b""), "is damaged: state/b has 0 bytes instead of 128000"),
    "longer": (damage("params/empty", lambda x: b"x"), "is damaged: params/empty has 1 bytes instead of 0"),
    "one bit": (damage("state/b", flip), "is damaged: state/b has another SHA-256 than when it was written"),
    "missing": (lambda f: (f / "data").unlink(), "is damaged: data is missing"),
    "a folder": (lambda f: ((f / "data").unlink(), (f / "data").mkdir()), "is damaged: data is missing"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "is not finished: it has no manifest.json"),
    "no JSON": (damage("manifest.json", lambda x: x[:-9]), "is damaged: manifest.json cannot be understood"),
    "not text": (damage("manifest.json", lambda x: b"\xff" + x), "is damaged: manifest.json cannot be understood"),
    "a list": (damage("manifest.json", lambda x: b"[1]"), "is damaged: manifest.json cannot be understood"),
    "a number": (damage("manifest.json", lambda x: b"7"), "is damaged: manifest.json cannot be understood"),
    "another stamp": (
        damage("manifest.json", lambda x: x.replace(b'"0.0"', b'"0.1"')),
        "is damaged: manifest.json is not as it was written",
    ),
    "a file forgotten": (
        damage("manifest.json", lambda x: x.replace(b"params/empty", b"params/emptx")),
        "is damaged: manifest.json is not as it was written",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(name, folder):
    change, words = DAMAGES[name]
    change(folder)
    assert integrity.fault(folder, 12).startswith(words)


@pytest.mark.parametrize(
    ("content", "sound"),
    [
        (b'{"item_handlers": {"a": "b"}, "metrics": {}, "init_timestamp_nsecs": 7, "new": [1]}', True),
        (b'{"item_handlers": null}', True), (b"{}", True), (b"", False), (b'{"metrics": {', False),
        (b"\xff\xfe", False), (b"[1]", False), (b"7", False), (b"null", False), (b'{"item_handlers": 3}', False),
        (b'{"item_handlers": [1]}', False), (b'{"metrics": []}', False), (b'{"custom_metadata": [1]}', False),
        (b'{"performance_metrics": "x"}', False), (b'{"commit_timestamp_nsecs": "x"}', False),
        (b'{"init_timestamp_nsecs": 1.5}', False),
    ],
)  # fmt: skip
def test_what_orbax_reads_of_a_step_is_looked_at(content, sound, folder):
    (folder / "_CHECKPOINT_METADATA").write_bytes(content)
    assert integrity.fault(folder, 12) == ("" if sound else "is damaged: _CHECKPOINT_METADATA cannot be understood")


def test_sizes_come_first(folder):
    damage("data", flip)(folder)
    damage("state/b", lambda x: x[:5])(folder)
    assert "state/b has 5 bytes" in integrity.fault(folder, 12)


def test_under_hashes_one_subfolder_only(folder):
    damage("state/b", flip)(folder)
    assert integrity.fault(folder, 12, under="params") == ""
    damage("params/d/a", flip)(folder)
    assert "params/d/a has another SHA-256" in integrity.fault(folder, 12, under="params")


def test_a_file_that_cannot_be_read(folder, monkeypatch):
    def fails(path):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(integrity, "_digest", fails)
    assert integrity.fault(folder, 12) == f"is damaged: {folder}/data cannot be read: Input/output error"


def test_the_name_of_a_folder_is_not_believed(folder):
    assert integrity.fault(folder, 13) == "is damaged: manifest.json is of step 12"


def test_the_newest_that_is_sound(folder):
    steps = folder.parent
    for step in (3, 4, 20):
        (steps / str(step)).mkdir()
        (steps / str(step) / "x").write_text(str(step))
        integrity.seal(steps / str(step), step, {})
    (steps / "21").write_text("a file")
    (steps / "22.orbax-checkpoint-tmp").mkdir()
    for name in ("03", "0030", "²", "-1", "train"):  # somebody's copies
        (steps / name).mkdir()
    assert integrity.steps(steps) == [3, 4, 12, 20]
    assert integrity.newest_sound(steps) == (20, {})
    damage("20/x", flip)(steps)
    (steps / "12" / "manifest.json").unlink()
    step, faults = integrity.newest_sound(steps)
    assert (step, list(faults)) == (4, [20, 12])
    assert faults[20].startswith("is damaged: x has another SHA-256")
    assert faults[12].startswith("is not finished")
    assert integrity.newest_sound(steps / "nowhere") == (None, {})
