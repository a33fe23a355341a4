"""A dump holds all of a step; it is whole or not there; and one that is damaged says so in one line."""

from __future__ import annotations

import errno
import json
import math
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from salt_jax.learner.reweighting import first_basis
from salt_jax.run import dumps
from salt_jax.run.dumps import DumpError, read_dump, restore_state, write_dump
from salt_jax.spec import ConfigError
from tests import training_setup as setup

VALUES = {"loss": math.nan, "grad_norm": math.inf, "reward": 0.1 + 0.2, "guards/skipped": 1.0}


def batch():
    extra = {"weight": jnp.linspace(0, 1, 16), "segments": jnp.ones((16, 4), jnp.int32)}
    found = setup.rollouts().replace(extra=extra)
    return found.replace(rewards=found.rewards.at[3].set(jnp.nan))


def state(reference=False, settings=None):
    return setup.initial_state(reference).replace(sketch_basis=first_basis(setup.tiny_run(settings)))


def dump(folder, **changes):
    what = {
        "step": 12, "statistic": "grad_norm", "values": VALUES, "batch": batch(), "state": state(),
        "config_values": setup.tiny_config(), "exact": True, "checkpoint": "run/checkpoints/train/10",
    }  # fmt: skip
    return write_dump(folder, **(what | changes))


def test_a_dump_has_all_of_it_bit_for_bit(tmp_path):
    path = dump(tmp_path)
    assert path == tmp_path / "dumps" / "step_12"
    found = read_dump(path)
    assert (found.step, found.statistic, found.exact) == (12, "grad_norm", True)
    assert found.checkpoint == "run/checkpoints/train/10"
    assert found.vocab_size == setup.VOCAB
    assert found.versions["jax"] == jax.__version__
    assert json.dumps(found.metrics) == json.dumps(VALUES)  # NaN is not equal to itself
    assert found.config == json.loads(json.dumps(setup.tiny_config()))
    assert sorted(found.batch.extra) == ["segments", "weight"]
    assert setup.same_bits(found.batch, batch())
    assert [x.dtype for x in jax.tree.leaves(found.batch)] == [x.dtype for x in jax.tree.leaves(batch())]


SKETCH = {"salt.feature": "lm_head_sketch", "salt.rank_vocab": 8, "salt.rank_hidden": 4}


@pytest.mark.parametrize(("reference", "settings"), [(False, {}), (True, SKETCH)], ids=["plain", "all fields"])
def test_the_state_comes_back_bit_for_bit(reference, settings, tmp_path):
    saved = state(reference, settings)
    saved = saved.replace(params=jax.tree.map(lambda x: x.at[0].set(jnp.nan), saved.params), step=jnp.int32(12))
    found = restore_state(read_dump(dump(tmp_path, state=saved)), state(reference, settings))
    assert setup.same_bits(found, saved)
    assert jax.tree.structure(found) == jax.tree.structure(saved)


def test_no_dump_is_ever_overwritten(tmp_path):
    paths = [dump(tmp_path, statistic=str(i)) for i in range(3)]
    assert [path.name for path in paths] == ["step_12", "step_12.1", "step_12.2"]
    assert [read_dump(path).statistic for path in paths] == ["0", "1", "2"]
    assert sorted(path.name for path in (tmp_path / "dumps").iterdir()) == [path.name for path in paths]


def test_a_run_that_stops_as_before_has_its_dump(tmp_path, monkeypatch):
    first = dump(tmp_path)
    written = first.stat().st_mtime_ns, (first / dumps.REASON).read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(dumps.provenance, "stamp", lambda: {"jax": "another"})
        assert dump(tmp_path) == first
    assert (first.stat().st_mtime_ns, (first / dumps.REASON).read_bytes()) == written
    other = dump(tmp_path, values=VALUES | {"grad_norm": 3.0})
    assert other.name == "step_12.1"
    assert dump(tmp_path, values=VALUES | {"grad_norm": 3.0}) == other


@pytest.mark.parametrize(
    "change",
    [
        {"step": 1}, {"statistic": "loss"}, {"values": VALUES | {"loss": 1.0}}, {"exact": False},
        {"checkpoint": "run/checkpoints/train/11"}, {"config_values": {"seed": 1}},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_run_that_stops_otherwise_has_another_dump(change, tmp_path):
    first = dump(tmp_path)
    assert dump(tmp_path, **change) != first
    assert len(list((tmp_path / "dumps").iterdir())) == 2


@pytest.mark.parametrize("name", [dumps.REASON, dumps.CONFIG, dumps.BATCH, dumps.STATE])
def test_a_dump_that_is_not_whole_is_not_taken_for_one(name, tmp_path):
    first = dump(tmp_path)
    (first / name).rename(tmp_path / "elsewhere")
    if name == dumps.REASON:
        (first / name).write_text("[1]")
    assert dump(tmp_path).name == "step_12.1"


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device", "/runs/a/dumps/batch.npz")


def not_ours(path, target, rename=Path.rename):
    """Orbax may rename its own folders."""
    return full() if path.parent.name == "dumps" else rename(path, target)


def refuse(*_, **__):
    raise ValueError("RESOURCE_EXHAUSTED: Error writing\n /runs/a/state")


@pytest.mark.parametrize(
    ("where", "name", "fault", "message"),
    [
        (np, "savez", full, r"/runs/a/dumps/batch.npz: No space left on device"),
        (ocp.Checkpointer, "save", refuse, r".*/dumps/step_12: RESOURCE_EXHAUSTED: Error writing /runs/a/state"),
        (Path, "rename", not_ours, r"/runs/a/dumps/batch.npz: No space left on device"),
    ],
    ids=["batch", "state", "name"],
)
def test_a_full_disk_is_one_line_and_leaves_nothing(where, name, fault, message, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(where, name, fault)
        with pytest.raises(DumpError, match=f"^{message}$"):
            dump(tmp_path)
    assert list((tmp_path / "dumps").iterdir()) == []
    assert read_dump(dump(tmp_path)).step == 12


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "dumps").write_text("a file")
    with pytest.raises(OSError, match="dumps"):
        dump(tmp_path)


def drop(name):
    return lambda path: (path / name).unlink()


def cut(name):
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:100])


def objects(path):
    np.savez(path / dumps.BATCH, tokens=np.array([{}], object))


def without_rewards(path):
    with zipfile.ZipFile(path / dumps.BATCH) as file:
        kept = {name: file.read(name) for name in file.namelist() if name != "rewards.npy"}
    with zipfile.ZipFile(path / dumps.BATCH, "w") as file:
        for name, content in kept.items():
            file.writestr(name, content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop(dumps.REASON), "is not a dump: it has no reason.json"),
        (cut(dumps.REASON), "is damaged: reason.json"),
        (drop(dumps.CONFIG), "is damaged: config.json"),
        (cut(dumps.CONFIG), "is damaged: config.json"),
        (drop(dumps.BATCH), "is damaged: batch.npz"),
        (cut(dumps.BATCH), "is damaged: batch.npz"),
        (objects, "is damaged: batch.npz: Object arrays cannot be loaded"),
        (without_rewards, "is damaged: reason.json or batch.npz"),
        (lambda path: (path / dumps.REASON).write_text("{}"), "is damaged: reason.json"),
        (lambda path: (path / dumps.REASON).write_text("[]"), "is damaged: reason.json"),
    ],
)
def test_a_damaged_dump_is_one_line(damage, message, tmp_path):
    path = dump(tmp_path)
    damage(path)
    with pytest.raises(ConfigError) as caught:
        read_dump(path)
    assert str(caught.value).startswith(f"{path} {message}")
    assert "\n" not in str(caught.value)


def test_a_state_that_is_damaged_or_of_another_policy(tmp_path):
    path = dump(tmp_path)
    other = state().replace(params={"embedding": jnp.zeros((3, 2))})
    for_state = [state().replace(sketch_basis=jnp.zeros((8, 2))), other]
    for like in for_state:
        with pytest.raises(ConfigError, match="is damaged: state: ") as caught:
            restore_state(read_dump(path), like)
        assert "\n" not in str(caught.value)
    for file in (path / dumps.STATE).rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(ConfigError, match="is damaged: state: ") as caught:
        restore_state(read_dump(path), state())
    assert "\n" not in str(caught.value)
