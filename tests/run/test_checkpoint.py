"""Checkpoints: what is saved comes back bit for bit anywhere, damage is passed over, a full disk ends in one line."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import threading

import jax
import numpy as np
import optax
import pytest

from salt_jax.distributed.sharding import make_mesh, tree_shardings
from salt_jax.learner.state import init_state
from salt_jax.models import integrity
from salt_jax.run.checkpoint import CheckpointError, Checkpoints
from salt_jax.tasks import CharTokenizer, Example, prompt_batches
from tests import training_setup as setup


class Data:
    """A position that is JSON, or JSON as bytes, as a Collection's is."""

    def __init__(self, value):
        self.value = value

    def get_state(self):
        return self.value

    def set_state(self, value):
        self.value = value


@pytest.fixture(scope="module")
def state():
    params = setup.initial_state().params
    made = init_state(
        params, optax.adam(1e-3), jax.random.key(3), keep_reference=True, sketch_basis=jax.numpy.full((8, 2), 0.5)
    )
    noise = np.random.default_rng(0)  # Adam's moments are zeros before the first step
    fill = lambda x: x + jax.numpy.asarray(noise.normal(size=x.shape), x.dtype)
    return made.replace(opt_state=jax.tree.map(fill, made.opt_state), step=jax.numpy.int32(7))


def zeros(state):
    return jax.tree.map(lambda x: jax.device_put(np.zeros_like(x), x.sharding), state)


def numbered(state, step):
    return state.replace(step=jax.numpy.int32(step))


@pytest.fixture
def opened(tmp_path):
    """Opens checkpoints that are closed at the end; what they warn of is in ``said``."""
    made, said = [], []

    def open_(keep=2, folder=tmp_path / "checkpoints" / "train", **options):
        made.append(Checkpoints(folder, keep, warn=said.append, **options))
        return made[-1]

    open_.said = said
    yield open_
    for checkpoints in made:
        checkpoints.close()


def save(checkpoints, state, *steps):
    for step in steps:
        checkpoints.save(step, numbered(state, step), Data({"next_index": step}))
        checkpoints.settle()


def steps_of(checkpoints):
    return integrity.steps(checkpoints.directory)


@pytest.mark.parametrize("position", [{"next_index": 5}, b'{"data": {"next_index": 5}, "memory": {}}', 3, None])
def test_everything_comes_back(position, state, opened):
    checkpoints = opened(stamp={"jax": "9"})
    checkpoints.save(7, state, Data(position))
    checkpoints.settle()
    data = Data("elsewhere")
    restored = opened().restore(7, zeros(state), data)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert setup.same_bits(restored, state)
    assert data.value == position
    params = opened(keep=None).restore_params(7, zeros(state).params)
    assert setup.same_bits(params, state.params)
    assert integrity.stamp_of(checkpoints.directory / "7") == {"jax": "9"}


def test_the_position_of_grain_batches(state, opened):
    source = [Example(f"{i}+1=", str(i + 1), str(i + 1), f"train/{i}") for i in range(30)]
    tokenizer = CharTokenizer("0123456789+=")
    make = lambda: prompt_batches(source, tokenizer, batch_size=4, max_prompt_length=8, seed=1)
    batches = make()
    next(batches), next(batches)
    checkpoints = opened()
    checkpoints.save(1, state, batches)
    following = [next(batches)["prompt_tokens"] for _ in range(3)]  # while the save is under way
    checkpoints.settle()
    again = make()
    checkpoints.restore(1, zeros(state), again)
    for expected in following:
        np.testing.assert_array_equal(next(again)["prompt_tokens"], expected)


@pytest.mark.mesh
@pytest.mark.parametrize("there", [(2, 2, 2), (1, 1, 1), (1, 8, 1)])
def test_another_mesh(there, state, opened):
    place = lambda tree, shape: jax.device_put(tree, tree_shardings(tree, make_mesh(*shape)))
    save(opened(), place(state, (8, 1, 1)), 7)
    target = place(zeros(state), there)
    restored = opened().restore(7, target, Data(None))
    assert setup.same_bits(restored, state)
    for leaf, like in zip(jax.tree.leaves(restored), jax.tree.leaves(target), strict=True):
        assert leaf.sharding == like.sharding


def test_the_newest_are_kept(state, opened):
    checkpoints = opened(keep=2)
    save(checkpoints, state, 0, 2, 4)
    assert steps_of(checkpoints) == [2, 4]
    save(opened(keep=1), state, 6)  # another start, with another setting
    assert steps_of(checkpoints) == [6]


@pytest.mark.parametrize(("mode", "best"), [("max", 2), ("min", 6)])
def test_the_best_is_kept_too(mode, best, state, opened):
    scores = {}
    checkpoints = opened(keep=1, scores=lambda: scores, best_mode=mode)
    assert checkpoints.best_step() is None
    for step, score in ((0, 0.5), (2, 0.8), (4, None), (6, 0.1), (8, 0.8), (10, 0.3)):
        if score is not None:
            scores[step] = score
        save(checkpoints, state, step)
    assert steps_of(checkpoints) == [best, 10]
    assert checkpoints.best_step() == best
    again = opened(keep=1, scores=lambda: scores, best_mode=mode)
    save(again, state, 12)
    assert (steps_of(again), again.best_step()) == ([best, 12], best)


def test_an_older_checkpoint_goes_only_when_the_new_one_is_sealed(state, opened, monkeypatch):
    checkpoints = opened(keep=1)
    save(checkpoints, state, 1)
    arrived, go_on = threading.Event(), threading.Event()
    seal = integrity.seal

    def slow(*arguments):
        arrived.set()
        assert go_on.wait(60)
        seal(*arguments)

    monkeypatch.setattr(integrity, "seal", slow)
    checkpoints.save(2, state, Data(None))
    assert arrived.wait(60)
    assert steps_of(checkpoints) == [1]  # a kill here loses nothing
    assert opened(keep=None).latest_step() == 1
    go_on.set()
    checkpoints.settle()
    assert (steps_of(checkpoints), checkpoints.latest_step()) == ([2], 2)
    assert opened.said == []


def truncate(folder):
    largest = max((path for path in (folder / "params").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def flip(folder):
    path = next(path for path in (folder / "state").rglob("d/*") if path.is_file())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


DAMAGES = {
    "truncated": (truncate, r"is damaged: params/.* has \d+ bytes instead of \d+"),
    "one bit": (flip, r"is damaged: state/.* has another SHA-256"),
    "missing": (lambda f: (f / "data" / "metadata").unlink(), r"is damaged: data/metadata is missing"),
    "not sealed": (lambda f: (f / "manifest.json").unlink(), r"is not finished: it has no manifest.json"),
    "no JSON for Orbax": (
        lambda f: (f / "_CHECKPOINT_METADATA").write_text("[1]"),
        r"is damaged: _CHECKPOINT_METADATA cannot be understood",
    ),
    "unreadable": (lambda f: (f / "manifest.json").write_text("{"), r"is damaged: manifest.json cannot be understood"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(name, state, opened):
    change, words = DAMAGES[name]
    checkpoints = opened(keep=3)
    save(checkpoints, state, 2, 4)
    folder = checkpoints.directory
    change(folder / "4")
    assert opened(keep=None).latest_step() == 2  # another run's folder: nothing is moved
    assert steps_of(checkpoints) == [2, 4]
    (other,) = opened.said
    opened.said.clear()

    again = opened(keep=3)
    assert again.latest_step() == 2
    (line,) = opened.said
    aside = folder.parent / "damaged" / "train_4"
    assert re.match(rf"checkpoint {folder}/4 {words}", line)
    assert line == f"{other}; it is now {aside}"
    assert other.endswith("; step 2 is used instead")
    assert aside.is_dir()
    assert setup.same_bits(again.restore(2, zeros(state), Data(None)), numbered(state, 2))
    save(again, state, 4)  # the step is done again
    assert again.latest_step() == 4
    change(folder / "4")
    assert opened(keep=3).latest_step() == 2
    assert (folder.parent / "damaged" / "train_4.1").is_dir()


@pytest.mark.parametrize("content", [b"[1]", b'{"item_handlers": 3}', b'{"cut', b"\xff"])
def test_what_orbax_keeps_of_an_older_step_stops_nobody(content, state, opened, capfd):
    """Orbax's managers read it of every step as they open: a ValueError, or ERROR:absl on the terminal."""
    checkpoints = opened(keep=3)
    save(checkpoints, state, 2, 4)
    (checkpoints.directory / "2" / "_CHECKPOINT_METADATA").write_bytes(content)
    (checkpoints.directory / "04").mkdir()  # no step: somebody's
    assert opened(keep=None).latest_step() == 4
    again = opened(keep=2)
    assert again.latest_step() == 4
    assert setup.same_bits(again.restore(4, zeros(state), Data(None)), numbered(state, 4))
    save(again, state, 6)
    assert steps_of(again) == [4, 6]  # as ever, the oldest goes
    assert opened.said == []
    assert "absl" not in capfd.readouterr().err


def test_without_a_sound_one_a_person_decides(state, opened):
    checkpoints = opened(keep=3)
    save(checkpoints, state, 0, 2, 4)
    for step in (0, 2, 4):
        truncate(checkpoints.directory / str(step))
    for _ in range(2):  # the second start does not begin anew, either
        with pytest.raises(CheckpointError, match=r"has no sound checkpoint: step 4 .*; step 2 .*; step 0 is damaged"):
            opened().latest_step()
    assert steps_of(checkpoints) == [0, 2, 4]
    assert opened.said == []


def test_a_damaged_beginning_is_begun_again(state, opened):
    checkpoints = opened()
    assert checkpoints.latest_step() is None
    save(checkpoints, state, 0)
    truncate(checkpoints.directory / "0")
    assert opened().latest_step() is None
    assert "the phase starts over; it is now" in opened.said[0]
    assert steps_of(checkpoints) == []


def test_what_a_kill_leaves_half_written_is_removed(state, opened):
    checkpoints = opened()
    save(checkpoints, state, 2)
    left = checkpoints.directory / "4.orbax-checkpoint-tmp"
    (left / "params.orbax-checkpoint-tmp").mkdir(parents=True)
    (left / "params.orbax-checkpoint-tmp" / "x").write_text("half")
    again = opened()
    assert again.latest_step() == 2
    save(again, state, 4)
    assert sorted(path.name for path in again.directory.iterdir()) == ["2", "4"]
    assert opened.said == []


def test_another_states_checkpoint_is_refused_in_one_line(state, opened):
    checkpoints = opened()
    save(checkpoints, state, 2)
    with pytest.raises(CheckpointError, match=r"train/2 cannot be restored: ") as caught:
        checkpoints.restore(2, state.replace(params={"other": state.step}), Data(None))
    assert "\n" not in str(caught.value)


def assert_failed_cleanly(checkpoints, error, step, good, reason, capfd):
    """One line that names the step, the folder, why and what is left; nothing else on the terminal; a quiet end."""
    place = checkpoints.directory
    last = "there is none yet" if good is None else f"the last good one is {place}/{good}"
    assert str(error) == f"step {step}: the checkpoint could not be written to {place}: {reason}; {last}"
    checkpoints.settle()
    checkpoints.close()
    assert "Traceback" not in capfd.readouterr().err
    assert not [thread for thread in threading.enumerate() if thread.name in ("async_save", "save_finalize")]
    assert [path.name for path in place.iterdir()] == ([] if good is None else [str(good)])
    if good is not None:
        assert integrity.fault(place / str(good), good) == ""


def out_of_room(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device", "somewhere")


@pytest.mark.parametrize("good", [None, 3])
def test_no_room_for_the_seal(good, state, opened, monkeypatch, capfd):
    checkpoints = opened()
    if good is not None:
        save(checkpoints, state, good)
    monkeypatch.setattr(integrity, "seal", out_of_room)
    checkpoints.save(4, state, Data(None))
    with pytest.raises(CheckpointError) as caught:
        checkpoints.settle()
    assert_failed_cleanly(checkpoints, caught.value, 4, good, "No space left on device", capfd)


def test_no_room_at_the_save_itself(state, opened, monkeypatch, capfd):
    checkpoints = opened()
    save(checkpoints, state, 3)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "save", out_of_room)
        with pytest.raises(CheckpointError) as caught:
            checkpoints.save(4, state, Data(None))
    assert_failed_cleanly(checkpoints, caught.value, 4, 3, "No space left on device", capfd)


@pytest.mark.parametrize("method", ["save", "close"])
def test_a_failure_in_the_background_is_told_by_the_next_call(method, state, opened, monkeypatch):
    checkpoints = opened()
    monkeypatch.setattr(integrity, "seal", out_of_room)
    checkpoints.save(4, state, Data(None))
    with pytest.raises(CheckpointError, match="step 4: .*No space left on device; there is none yet"):
        checkpoints.close() if method == "close" else checkpoints.save(5, state, Data(None))


def test_the_first_error_is_not_hidden_by_a_failed_save(state, opened, monkeypatch):
    checkpoints = opened()
    monkeypatch.setattr(integrity, "seal", out_of_room)

    def fails():
        try:
            checkpoints.save(4, state, Data(None))
            raise ZeroDivisionError("what the person should read")
        finally:
            checkpoints.close()

    with pytest.raises(ZeroDivisionError):
        fails()
    assert [line.split(":")[0] for line in opened.said] == ["step 4"]


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a small disk: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def large(state):
    """4 MB that nothing compresses."""
    noise = np.random.default_rng(1).normal(size=(1 << 20,)).astype(np.float32)
    return state.replace(params={**state.params, "more": jax.numpy.asarray(noise)})


def test_a_full_disk(state, small_disk, opened, capfd):
    checkpoints = opened(folder=small_disk / "checkpoints" / "train")
    save(checkpoints, state, 3)
    checkpoints.save(4, large(state), Data(None))
    with pytest.raises(CheckpointError) as caught:
        checkpoints.settle()
    assert_failed_cleanly(checkpoints, caught.value, 4, 3, "No space left on device", capfd)
    again = opened(folder=checkpoints.directory)
    assert again.latest_step() == 3
    save(again, state, 5)  # there is room again; not 4, whose folder a write still under way here may put back
    assert steps_of(again) == [3, 5]


def test_a_disk_that_has_become_read_only(state, small_disk, opened, capfd):
    checkpoints = opened(folder=small_disk / "checkpoints" / "train")
    save(checkpoints, state, 3)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.save(4, state, Data(None))
    assert_failed_cleanly(checkpoints, caught.value, 4, 3, "Read-only file system", capfd)
    with pytest.raises(CheckpointError, match="checkpoints/warm cannot be used: Read-only file system"):
        Checkpoints(small_disk / "checkpoints" / "warm", 2)
    assert opened(keep=None, folder=checkpoints.directory).latest_step() == 3
