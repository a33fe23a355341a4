"""What ways to collect are made of: classes, list items, components, gradient norms, and what a checkpoint keeps."""

from __future__ import annotations

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from salt_jax.collect import COLLECTORS, extras, gvm
from salt_jax.collect.collection import packed, unpacked
from salt_jax.collect.groups import Groups, join, pool
from salt_jax.collect.turn import Turn
from salt_jax.graders import Verdict
from salt_jax.learner.settings import CollectionConfig
from salt_jax.policy.logprobs import completion_scores
from salt_jax.policy.sampler import Samples
from tests.collect.collect_setup import (
    TOKENIZER,
    Script,
    collection,
    engine,
    examples,
    groups_of,
    prompts_of,
    state_at,
)
from tests.collect.test_collect import forever, way
from tests.training_setup import call, same_bits, tiny_run


def first_letters(texts):
    """A cluster function that a configuration can name."""
    return [text[:1] for text in texts]


def too_few(texts):
    return texts[1:]


# --- classes and items ---


TEXTS = ["ab ", "ab", "b", "", "a", "a", "c", "d"]
ANSWERS = ["1", "2", "1", None, None, None, "9", "9"]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("text", [0, 0, 1, 2, 0, 0, 1, 2]),
        ("answer", [0, 1, 0, 2, 0, 0, 1, 1]),
        ("tests.collect.test_collect_parts:first_letters", [0, 0, 1, 2, 0, 0, 1, 2]),
    ],
)
def test_classes_of_a_group(how, expected):
    found = extras.clusters(how, 4, TEXTS, ANSWERS)
    assert found.tolist() == expected
    assert found.dtype == np.int32


def test_a_cluster_function_must_name_every_completion():
    with pytest.raises(ValueError, match="too_few' gave 3 labels for 4 texts"):
        extras.clusters("tests.collect.test_collect_parts:too_few", 4, TEXTS, ANSWERS)


def test_an_answer_is_not_a_text():
    assert extras.clusters("answer", 2, ["7", "x"], [None, "7"]).tolist() == [0, 1]


@given(rows=st.lists(st.text("12\n", max_size=6), min_size=1, max_size=5))
def test_items_are_counted_by_newlines_before_a_token(rows):
    ids = [TOKENIZER.encode(row) + [TOKENIZER.eos_id] for row in rows]
    tokens = np.full((len(rows), 7), TOKENIZER.encode("\n")[0], np.int32)  # what pads must not count
    for row, of_row in enumerate(ids):
        tokens[row, : len(of_row)] = of_row
    lengths = np.array([len(of_row) for of_row in ids])
    found = extras.newline_segments(TOKENIZER, tokens, lengths)
    for row, text in enumerate(rows):
        expected = [text[:i].count("\n") for i in range(len(text) + 1)]
        assert found[row, : len(expected)].tolist() == expected
        assert set(found[row, len(expected) :].tolist()) <= {text.count("\n")}


def test_a_token_of_several_newlines_ends_one_item():
    class Pairs:
        def decode(self, ids):
            return "".join({3: "a", 4: "\n\n", 5: ".\n"}[i] for i in ids)

    found = extras.newline_segments(Pairs(), np.array([[3, 4, 3, 5, 3]]), np.array([5]))
    assert found.tolist() == [[0, 0, 1, 1, 2]]


def test_only_what_is_asked_for_is_there():
    samples = Samples(np.zeros((2, 1), int), np.ones(2, int), np.zeros((2, 1)), np.zeros(2, bool))
    nothing = extras.of_rollouts(CollectionConfig(), TOKENIZER, 2, ["a", "b"], [None] * 2, None, samples)
    assert nothing == {}
    parts = np.array([[1.0, np.nan], [0.0, 2.0]])
    some = extras.of_rollouts(CollectionConfig(), TOKENIZER, 2, ["a", "b"], [None] * 2, parts, samples)
    assert some["components"].tolist() == [[1, 0], [0, 2]]


def test_components_of_graders_that_sometimes_fail():
    def verifier(completion, reference):
        if completion.startswith("3"):
            raise RuntimeError("lost")
        return Verdict(1.0 if completion.startswith("1") else 0.0, None, (1.0, 2.0))

    script = Script(forever("3312") | {examples()[0].prompt: itertools.repeat("3")})
    batch = collection(engine(way("aepo"), script=script, verifier=verifier))(state_at(), 1).rollouts
    assert batch.extra["components"].shape == (16, 2)
    lost = ~np.asarray(batch.rewarded)
    assert (np.asarray(batch.extra["components"])[lost] == 0).all()
    assert (np.asarray(batch.extra["components"])[~lost] == [1, 2]).all()


# --- groups ---


def made(rewards, graded=None, width=0, first=0):
    """Groups whose tokens number their rollouts."""
    rewards = np.asarray(rewards, np.float32)
    b, g = rewards.shape
    number = first + np.arange(b * g).reshape(b, g)
    return Groups(
        prompts=np.arange(b)[:, None], prompt_mask=np.ones((b, 1), bool),
        ids=np.array([str(i) for i in range(b)], object),
        tokens=np.repeat(number[..., None], 2, 2), log_probs=-1.0 * np.repeat(number[..., None], 2, 2),
        lengths=np.ones((b, g), int), truncated=np.zeros((b, g), bool), rewards=rewards,
        rewarded=np.ones((b, g), bool) if graded is None else np.asarray(graded), valid=np.ones((b, g), bool),
        texts=number.astype(str).astype(object), answers=np.full((b, g), None), components=np.ones((b, g, width)),
    )


def test_a_signal_needs_two_different_graded_rewards():
    graded = [[True, True], [True, True], [True, False], [False, False]]
    assert made([[1, 1], [1, 0], [1, 0], [1, 0]], graded).with_signal().tolist() == [False, True, False, False]


def test_rollouts_are_picked_pooled_joined_and_put():
    one, two = made([[1, 0], [0, 1]]), made([[1, 1, 1], [0, 0, 0]], first=10, width=2)
    both = pool([one, two])
    assert both.tokens[..., 0].tolist() == [[0, 1, 10, 11, 12], [2, 3, 13, 14, 15]]
    assert np.isnan(both.components[:, :2]).all()
    assert (both.components[:, 2:] == 1).all()
    picked = both.pick(np.array([[4, 0], [1, 2]]))
    assert picked.tokens[..., 1].tolist() == [[12, 0], [3, 13]]
    assert picked.texts.tolist() == [["12", "0"], ["3", "13"]]
    put = one.put(np.array([[True, False], [False, True]]), picked)
    assert put.tokens[..., 0].tolist() == [[12, 1], [2, 13]]
    assert put.texts.tolist() == [["12", "1"], ["2", "13"]]
    assert join([one, picked]).ids.tolist() == ["0", "1", "0", "1"]
    assert len(join([one, picked])) == 4


# --- GVM ---


def test_gradient_norms_are_those_of_the_output_projection():
    base = engine(way("gvm", pilots=4) | {"objective.estimator": "raft", "sampling.temperature": 0.7})
    turn = Turn(base, state_at(), 1)
    batch = next(collection(base).data)
    pilots = turn.groups(batch, draw=0, rollouts=4)
    found = gvm.gradient_norms(turn, pilots)
    rollouts = turn.assemble(pilots)

    def log_prob(head, model, row):
        model = nnx.merge(base.policy, state_at().params | {"head": head})
        scores = completion_scores(model, row, group_size=1, temperature=0.7)
        return jnp.sum(jnp.where(row.completion_mask, scores.log_probs, 0.0))

    def norms(params, rollouts):
        def one(row):
            row = jax.tree.map(lambda x: x[None], row)
            return jnp.linalg.norm(jax.grad(log_prob)(params["head"], None, row))

        return jax.lax.map(one, rollouts)

    expected = call(norms, state_at().params, rollouts)
    np.testing.assert_allclose(found.reshape(-1), expected, rtol=2e-4)


@pytest.mark.parametrize(
    ("norms", "rates", "expected"),
    [
        ([1, 1, 1], [0.5, 0.5, 0.5], [3, 3, 2]),
        ([1, 1, 0], [0.5, 0.5, 0.0], [4, 4, 0]),  # nothing accepted: nothing
        ([1, 9, 1], [0.5, 0.5, 0.5], [2, 4, 2]),  # at most max_slots
        ([1, 0.001, 1], [0.5, 0.5, 0.5], [4, 1, 3]),  # at least min_slots
        ([0, 0, 0], [0, 0, 0], [3, 3, 2]),
        ([1, 0, 0], [0.1, 0, 0], [8, 0, 0]),  # the one that is left takes all, beyond max_slots
    ],
)
def test_slots_follow_norms_and_rates(norms, rates, expected):
    settings = CollectionConfig(method="gvm", max_slots=4)
    found = gvm.slots_of(np.asarray(norms, float), np.asarray(rates, float), 8, settings)
    assert sorted(found.tolist()) == sorted(expected)
    assert found.sum() == 8
    assert [n == 0 for n in found] == [n == 0 for n in expected]


def test_gvm_weighs_rollouts_so_that_prompts_count_alike():
    problems = examples(2)
    a, b = problems[0].prompt, problems[1].prompt
    script = Script({a: itertools.chain("1222" * 2, itertools.cycle("1222")), b: itertools.cycle("1122")})
    base = engine(way("gvm", max_slots=3) | {"objective.estimator": "raft"}, problems=problems, script=script)
    collected = collection(base)(state_at(), 1)
    batch = collected.rollouts
    slots = {name: prompts_of(batch)[::4].count(name) for name in (a, b)}
    assert sum(slots.values()) == 4
    rates = {a: 0.25, b: 0.5}
    for name, weight in zip(prompts_of(batch), batch.extra["weight"], strict=True):
        assert weight == pytest.approx(16 / (2 * 4 * slots[name] * rates[name]))
    assert [call[:2] for call in script.calls] == [(2, 8), (4, 4)]
    assert collected.metrics["collection/rollouts_sampled"] == 2 * 8 + 16
    assert collected.metrics["collection/prompts_sampled"] == 2


@pytest.mark.parametrize(("prompts", "pilots", "shards", "expected"), [
    (4, 4, 1, 4), (4, 8, 1, 2), (4, 100, 1, 1), (6, 4, 2, 2), (6, 1, 2, 6), (4, 100, 4, 4),
])  # fmt: skip
def test_pilots_go_through_the_model_in_parts(prompts, pilots, shards, expected):
    assert gvm.prompts_at_once(tiny_run(), prompts, pilots, shards) == expected  # a microbatch has 16 rows


# --- checkpoints ---


@given(values=st.lists(st.floats(allow_nan=False), max_size=6))
def test_memory_is_kept_bit_for_bit(values):
    memory = {"a": np.array(values), "b": np.float64(0.1) * np.ones(())}
    back = unpacked(json.loads(json.dumps(packed(memory))))
    assert back.keys() == memory.keys()
    assert all(back[name].tobytes() == memory[name].tobytes() for name in memory)
    assert back["b"].shape == ()
    back["a"][:] = 0  # writable: not a view of the text


@pytest.mark.parametrize("method", [name for name in COLLECTORS if name not in ("plain", "hpt")])
def test_a_collection_goes_on_where_it_was(method):
    """Position, memory and the keys of the step are all there is: the scripts are pure functions of the call."""
    needs = {"reinforce_ada": "given_baseline", "reinforce_ada_est": "given_baseline", "gvm": "raft"}
    overrides = way(method) | ({"objective.estimator": needs[method]} if method in needs else {})
    fresh = lambda: collection(engine(overrides, script=Keyed()))
    one = fresh()
    for step in range(2):
        one(state_at(step), step + 1)
    state = one.get_state()
    assert isinstance(state, bytes)
    expected = [one(state_at(step), step + 1).rollouts for step in (2, 3)]
    other = fresh()
    other.set_state(state)
    assert same_bits([other(state_at(step), step + 1).rollouts for step in (2, 3)], expected)
    assert other.get_state() == one.get_state()


class Keyed(Script):
    """Outcomes from the key of the call, as a sampler's are."""

    def __init__(self) -> None:
        super().__init__({})

    def sampler(self, prompts, rollouts, temperature):
        def generate(params, tokens, mask, key):
            rng = np.random.default_rng(jax.random.key_data(key).tolist())
            rows = prompts * rollouts
            ids = rng.integers(3, 11, size=(rows, 4)).astype(np.int32)
            ids[:, 0] = rng.integers(3, 5, size=rows)  # right or wrong
            log_probs = -rng.random((rows, 4)).astype(np.float32)
            return Samples(ids, np.full(rows, 4, np.int32), log_probs, np.zeros(rows, bool))

        return generate


def test_the_seed_orders_the_prompts():
    first, second, again = (next(collection(engine({"seed": seed})).data)["ids"] for seed in (0, 1, 1))
    assert first != second
    assert second == again


def test_another_data_sets_memory_is_refused():
    one = collection(engine(way("vade"), script=Keyed()))
    other = collection(engine(way("vade"), problems=examples(5), script=Keyed()))
    with pytest.raises(ValueError, match="remembers something else"):
        other.set_state(one.get_state())


def test_groups_of_lists():
    assert groups_of([1, 2, 3, 4], 2) == [[1, 2], [3, 4]]
