"""Ways to collect rollouts, each with a script in place of the policy: what is in the batch, and in which rows."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from salt_jax.collect import COLLECTORS, CollectionError, ada, allocation, generation
from salt_jax.collect.checks import check_problems
from salt_jax.graders import Verdict
from salt_jax.learner.step import sampling_key
from salt_jax.spec import ConfigError
from salt_jax.tasks import prompt_batches
from tests.collect.collect_setup import (
    TOKENIZER,
    Script,
    collection,
    engine,
    examples,
    groups_of,
    numbers_of,
    prompts_of,
    state_at,
)
from tests.training_setup import same_bits, tiny_run

GIVEN = {"objective.estimator": "given_baseline"}
NEEDS = {  # what a method needs besides its name
    "reinforce_ada": GIVEN, "reinforce_ada_est": GIVEN, "gvm": {"objective.estimator": "raft"},
}  # fmt: skip


def way(method, **options):
    overrides = {"collection.method": method} | NEEDS.get(method, {})
    return overrides | {f"collection.{name}": value for name, value in options.items()}


def forever(outcomes="12"):
    return {example.prompt: itertools.cycle(outcomes) for example in examples(40)}


def order(made, batches=1):
    """The prompts that the iterator brings, batch by batch."""
    data = prompt_batches(
        made.source, TOKENIZER, batch_size=4, max_prompt_length=3, seed=made.run.seed
    )
    return [[name.removeprefix("train/") for name in next(data)["ids"]] for _ in range(batches)]


# --- all of them ---


@pytest.mark.parametrize("method", COLLECTORS)
def test_a_batch_has_its_shape_and_every_slot_one_prompt(method):
    made = engine(way(method), script=Script(forever("11212222")))
    collect = collection(made)
    for step in range(2):
        collected = collect(state_at(step), step + 1)
        batch = collected.rollouts
        assert batch.num_rollouts == 16
        assert all(len(set(group)) == 1 for group in groups_of(prompts_of(batch)))
        longest = int(np.asarray(batch.completion_mask & batch.valid[:, None]).sum(axis=1).max())
        assert batch.completion_mask.shape[1] == longest  # trimmed: 4 length buckets of 4 tokens
        assert all(value.shape[0] == 16 for value in batch.extra.values())
        assert collected.tokens > 0
        if method != "plain":
            assert collected.metrics["collection/rollouts_sampled"] >= np.asarray(batch.valid).sum() - 4
            assert collected.metrics["collection/prompts_sampled"] >= 2


@pytest.mark.parametrize("method", COLLECTORS)
def test_what_a_method_brings(method):
    extra = {
        "reinforce_ada": {"baseline", "weight"}, "reinforce_ada_est": {"baseline", "weight"}, "gvm": {"weight"},
        "aepo": {"injected"}, "hpt": {"demonstration"},
    }  # fmt: skip
    free = method not in NEEDS  # of an estimator of its own
    settings = way(method, segments="newline") | {"objective.surrogate": "macro_mean"}
    if free:
        settings |= {"collection.clusters": "answer", "objective.estimator": "darling"}
    made = engine(
        settings, script=Script(forever()),
        verifier=lambda completion, reference: Verdict(float(completion[:1] == "1"), None, (0.5, 1.0)),
    )
    batch = collection(made)(state_at(), 1).rollouts
    assert set(batch.extra) == extra.get(method, set()) | {"segments", "components"} | ({"clusters"} if free else set())
    assert batch.extra["segments"].shape == batch.completion_mask.shape
    assert batch.extra["components"].tolist() == [[0.5, 1.0]] * 16
    kinds = {name: value.dtype.kind for name, value in batch.extra.items()}
    assert kinds == {name: "b" if name in ("injected", "demonstration") else "i" if name in ("clusters", "segments")
                     else "f" for name in batch.extra}


def test_plain_is_the_pipeline_it_always_was():
    made = engine({"sampling.temperature": 0.8})
    collected = collection(made)(state_at(3), 4)
    run, params = made.run, state_at().params
    batch = next(prompt_batches(made.source, TOKENIZER, batch_size=4, max_prompt_length=3, seed=0))
    generate = generation.jit_sampler(
        made.policy, params, made.mesh, group_size=4, config=run.sampling, tokenizer=TOKENIZER
    )
    prompts, mask = batch["prompt_tokens"], batch["prompt_mask"]
    samples = generate(params, prompts, mask, jax.jit(sampling_key)(state_at(3)))
    grades = generation.grade_samples(made.task, made.grade, samples, batch["references"], 4)
    lengths = generation.batch_lengths(run, mask, jax.device_get(samples.lengths))
    assemble = generation.jit_assemble(made.mesh, 4)
    expected = assemble(prompts, mask, samples, grades.rewards, grades.rewarded, lengths)
    assert same_bits(collected.rollouts, expected)
    assert collected.rollouts.extra == {}
    assert collected.tokens == int(np.sum(samples.lengths))
    assert collected.metrics == {}
    assert collection(made).saved.get_state() == {"next_index": 0}  # as it was: the iterator's own


@pytest.mark.parametrize("method", ["vade", "aepo", "gvm"])
def test_the_same_seed_gives_the_same_bits_and_another_step_others(method):
    made = engine(way(method))
    one, two = (collection(made)(state_at(), 1).rollouts for _ in range(2))
    assert same_bits(one, two)
    other = collection(made)(state_at(1), 2).rollouts
    assert np.asarray(one.sampler_log_probs).tobytes() != np.asarray(other.sampler_log_probs).tobytes()


def test_rollouts_are_graded_by_their_own_problems_answer():
    made = engine(way("plain"), script=Script(forever()), verifier=lambda completion, reference: float(reference))
    rollouts = collection(made)(state_at(), 1).rollouts
    assert np.asarray(rollouts.rewards).tolist() == [float(prompt) for prompt in prompts_of(rollouts)]


def test_missing_rewards_are_told_once_a_grading():
    said = []
    made = engine(way("hpt"), script=Script(forever("1233")), warn=said.append)
    batch = collection(made)(state_at(), 1).rollouts
    assert said == ["8 of 16 rewards are missing, the first: RuntimeError: lost"]
    assert groups_of(batch.rewarded) == [[True, True, False, False]] * 4


# --- PODS ---


def test_pods_keeps_the_most_varied_of_what_it_samples():
    script = Script(forever("22212222"))
    made = engine(way("pods", sampled_rollouts=8), script=script)
    collected = collection(made)(state_at(), 1)
    assert script.calls == [(4, 8, 1.0)]
    for group in groups_of(collected.rollouts.rewards):
        assert sorted(group) == [0.0, 0.0, 0.0, 1.0]  # one right in eight: it stays
    assert collected.metrics["collection/rollouts_sampled"] == 32
    assert collected.metrics["collection/dropped"] == 0.5


def test_pods_fills_up_with_what_was_not_graded():
    made = engine(way("pods", sampled_rollouts=8), script=Script(forever("33313233")))
    batch = collection(made)(state_at(), 1).rollouts
    assert [sum(group) for group in groups_of(batch.rewarded)] == [2] * 4
    rewards = np.where(np.asarray(batch.rewarded), np.asarray(batch.rewards), -1.0)
    assert all(sorted(group) == [-1.0, -1.0, 0.0, 1.0] for group in groups_of(rewards))


# --- dynamic sampling ---


def test_dynamic_refills_until_there_are_enough_groups_with_signal():
    made = engine(way("dynamic"), problems=examples(12), script=Script({}))
    first, second, third = order(made, 3)
    script = Script(
        {name: itertools.repeat("1") for name in first[:2]} | {name: itertools.repeat("2") for name in [first[2]]}
        | {name: itertools.cycle("12") for name in (first[3], *second[1:], *third)}
        | {second[0]: itertools.cycle("3331")}  # one graded rollout: no signal
    )
    made = engine(way("dynamic"), problems=examples(12), script=script)
    collected = collection(made)(state_at(), 1)
    batch = collected.rollouts
    assert [group[0] for group in groups_of(prompts_of(batch))] == [first[3], *second[1:]]
    assert groups_of(batch.rewards) == [[1, 0, 1, 0]] * 4
    assert np.asarray(batch.valid).all()
    assert script.calls == [(4, 4, 1.0)] * 2  # one shape, and no third batch
    assert script.keys[0] != script.keys[1]
    seen = {name.removeprefix("collection/"): value for name, value in collected.metrics.items()}
    assert seen == {
        "prompts_sampled": 8, "rollouts_sampled": 32, "generation_batches": 2, "share_with_signal": 0.5,
        "all_right": 3 / 8, "all_wrong": 1 / 8, "groups_discarded": 0, "reward_sampled": (8 + 1 + 4 * 2) / (28 + 1),
    }  # fmt: skip


def test_dynamic_gives_up_or_trains_on_what_there_is():
    problems = examples(12)
    streams = {example.prompt: itertools.repeat("2") for example in problems}
    streams[order(engine(problems=problems), 2)[1][2]] = itertools.cycle("12")
    made = engine(way("dynamic", max_batches=2), problems=problems, script=Script(streams))
    with pytest.raises(CollectionError) as caught:
        collection(made)(state_at(6), 7)
    assert str(caught.value) == (
        "step 7: 2 generation batches gave 1 of 4 groups with signal; raise config.collection.max_batches, or set"
        " config.collection.on_exhausted = 'train'"
    )
    made = engine(way("dynamic", max_batches=2, on_exhausted="train"), problems=problems, script=Script(streams))
    batch = collection(made)(state_at(6), 7).rollouts
    assert groups_of(batch.valid) == [[True] * 4] + [[False] * 4] * 3
    assert groups_of(batch.rewards)[0] == [1, 0, 1, 0]


# --- Reinforce-Ada ---


def test_reinforce_ada_keeps_what_the_golden_pools_keep():
    made = engine(way("reinforce_ada"), script=Script({}))
    dead, hard, mid, easy = order(made)[0]  # the first one fills up the batches of later rounds
    outcomes = {hard: "000000100100", mid: "1010", easy: "111111101111", dead: "0" * 20}
    script = Script({name: text.replace("0", "2") for name, text in outcomes.items()})
    made = engine(way("reinforce_ada", max_rounds=3), script=script)
    collected = collection(made)(state_at(), 1)
    batch = collected.rollouts
    assert prompts_of(batch)[::4] == [dead, hard, mid, easy]
    assert groups_of(numbers_of(batch)) == [[0, 1, 2, 3], [6, 9, 0, 1], [0, 2, 1, 3], [0, 1, 2, 7]]
    assert groups_of(batch.rewards) == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    rates = np.array([0, 2 / 12, 2 / 4, 11 / 12])
    np.testing.assert_allclose(batch.extra["baseline"], np.repeat(rates, 4), rtol=1e-6)
    assert np.asarray(batch.extra["weight"]).tolist() == [1.0] * 16
    assert script.calls == [(4, 4, 1.0)] * 3  # three prompts fill a batch of four: halves are 2
    assert collected.metrics["collection/rollouts_sampled"] == 12 * 3 + 4
    assert collected.metrics["collection/prompts_sampled"] == 4
    assert collected.metrics["collection/unresolved"] == 0.5


def test_reinforce_ada_samples_fewer_as_prompts_are_done_and_weighs():
    made = engine(way("reinforce_ada"), script=Script({}))
    names = order(made)[0]
    script = Script({name: "1212" * 3 if i else "2222" + "1222" + "1111" for i, name in enumerate(names)})
    made = engine(way("reinforce_ada", pool_weight="inverse_rate"), script=script)
    batch = collection(made)(state_at(), 1).rollouts
    assert script.calls == [(4, 4, 1.0), (1, 4, 1.0), (1, 4, 1.0)]
    rates = [5 / 12, 0.5, 0.5, 0.5]
    np.testing.assert_allclose(batch.extra["baseline"], np.repeat(rates, 4), rtol=1e-6)
    np.testing.assert_allclose(batch.extra["weight"], np.repeat(1 / np.array(rates), 4), rtol=1e-6)
    assert len({tuple(key) for key in script.keys}) == 3


def test_reinforce_ada_with_another_exit_rule_and_round():
    names = order(engine())[0]
    script = Script({name: itertools.cycle("22222212") for name in names})
    made = engine(way("reinforce_ada", exit_rule="positive", positives=2, round_rollouts=8, max_rounds=2),
                  script=script)
    batch = collection(made)(state_at(), 1).rollouts
    assert script.calls == [(4, 8, 1.0)] * 2
    assert groups_of(numbers_of(batch)) == [[6, 14, 0, 1]] * 4
    np.testing.assert_allclose(batch.extra["baseline"], 1 / 8)


def test_missing_rewards_are_neither_right_nor_wrong():
    names = order(engine())[0]
    made = engine(way("reinforce_ada", max_rounds=1), script=Script({name: "3312" for name in names}))
    batch = collection(made)(state_at(), 1).rollouts
    assert groups_of(numbers_of(batch)) == [[2, 3, 0, 1]] * 4
    assert groups_of(batch.rewarded) == [[True, True, False, False]] * 4
    np.testing.assert_allclose(batch.extra["baseline"], 0.5)


@pytest.mark.parametrize(("prompts", "shards", "sizes"), [
    (8, 1, [8, 4, 2, 1]), (6, 1, [6, 3, 2, 1]), (1, 1, [1]), (12, 4, [12, 8, 4]), (6, 2, [6, 4, 2]),
])  # fmt: skip
def test_rounds_have_few_sizes_that_devices_divide(prompts, shards, sizes):
    assert ada.buckets(prompts, shards) == sizes


def test_reinforce_ada_est_shares_slots_by_what_it_has_seen():
    overrides = way("reinforce_ada_est", max_slots=3, rate_eps=1e-3)
    problems = examples(2)
    a, b = problems[0].prompt, problems[1].prompt
    script = Script({a: itertools.repeat("2"), b: itertools.repeat("1")})
    made = engine(overrides, problems=problems, script=script)
    collect = collection(made)
    shares = []
    counts = {a: (0.0, 0.0), b: (0.0, 0.0)}  # by hand: N, N⁺
    for step in range(3):
        rate = {name: (k + 1) / (n + 2) for name, (n, k) in counts.items()}
        wanted = 4 * rate[a] ** -0.5 / (rate[a] ** -0.5 + rate[b] ** -0.5)
        batch = collect(state_at(step), step + 1).rollouts
        slots = prompts_of(batch)[::4].count(a)
        assert slots == int(np.clip(np.rint(wanted), 1, 3))
        counts = {name: (0.9 * n + 4 * s, 0.9 * k + (4 * s if name == b else 0))
                  for (name, (n, k)), s in zip(counts.items(), (slots, 4 - slots), strict=True)}
        shares.append(slots)
        right = np.array([name == b for name in prompts_of(batch)], float)
        np.testing.assert_allclose(batch.extra["baseline"], right)
        np.testing.assert_allclose(batch.extra["weight"], (right + 1e-3) ** -0.5, rtol=1e-6)
    assert shares == [2, 3, 3]  # the hard one gets more
    assert script.calls == [(4, 4, 1.0)] * 3


def test_est_advantages_come_out_of_baseline_and_weight():
    names = order(engine())[0][:2]
    made = engine(way("reinforce_ada_est"), script=Script({e.prompt: itertools.cycle("12122222") for e in examples()}))
    batch = collection(made)(state_at(), 1).rollouts
    assert prompts_of(batch)[::4] == [names[0], names[0], names[1], names[1]]
    rewards, extra = np.asarray(batch.rewards, np.float64).reshape(2, 8), batch.extra
    found = (rewards.reshape(-1) - np.asarray(extra["baseline"])) * np.asarray(extra["weight"])
    expected = np.concatenate([allocation.est_advantages(r, 0.01) for r in rewards])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


# --- VADE ---


def test_vade_learns_which_problems_teach():
    problems = examples(12)
    teaching = {example.prompt for example in problems[:4]}
    outcomes = {
        e.prompt: itertools.cycle("12222122") if e.prompt in teaching else itertools.repeat("1") for e in problems
    }
    made = engine(way("vade"), problems=problems, script=Script(outcomes))
    collect = collection(made)
    shares = []
    for step in range(16):
        batch = collect(state_at(step), step + 1).rollouts
        chosen = prompts_of(batch)[::4]
        assert len(set(chosen)) == 4
        shares.append(len(teaching.intersection(chosen)))
    assert sum(shares[-6:]) > sum(shares[:6])
    assert sum(shares[-6:]) >= 17  # of 24; by chance 8
    position = [e.prompt for e in problems].index(chosen[0])
    assert collect.memory["alpha"].shape == (12,)
    assert collect.memory["alpha"][position] + collect.memory["beta"][position] >= 4  # the last four rollouts
    assert collect.saved is collect
    assert collect.data is None


# --- AEPO ---


def test_aepo_injects_right_rollouts_into_their_own_prompts_group():
    eight = list(next(prompt_batches(examples(8), TOKENIZER, batch_size=8, max_prompt_length=3, seed=0))["ids"])
    eight = [name.removeprefix("train/") for name in eight]
    streams = {name: "2222" for name in eight[2:]}
    streams[eight[0]] = "1222" + "2121"  # on-policy, then the second sampling
    streams[eight[1]] = "2222" + "1111"  # unanimous: no advantage, none injected
    script = Script(streams)
    made = engine(way("aepo") | {"sampling.prompts_per_step": 8}, script=script)
    collect = collection(made)
    collected = collect(state_at(), 1)
    batch = collected.rollouts
    assert script.calls == [(8, 4, 1.0), (2, 4, 1.2)]  # entropy 0 before the first step: hot
    injected = groups_of(batch.extra["injected"])
    assert injected == [[True, True, False, False]] + [[False] * 4] * 7
    assert groups_of(numbers_of(batch))[0] == [5, 7, 2, 3]  # rollouts 5 and 7 of that prompt were right
    assert groups_of(batch.rewards)[0] == [1, 0, 0, 0]  # the group's statistics stay those of the policy
    mask, log_probs = np.asarray(batch.completion_mask), np.asarray(batch.sampler_log_probs)
    own = np.repeat([1, 2, 3, 4], [1, 2, 3, 4]) / 8  # of each prompt's four rollouts: −(number + 1)/8 a token
    assert collect.memory["entropy"] == pytest.approx(own.mean())
    assert collected.metrics["collection/entropy"] == pytest.approx(own.mean())
    assert collected.metrics["collection/injected"] == 2
    assert (log_probs[~mask] == 0).all()


@pytest.mark.parametrize(("target", "temperature", "count"), [(0.5, 0.8, 1), (0.6, 1.2, 3), (0.55, 1.2, 3)])
def test_aepo_is_cold_and_halves_above_its_target(target, temperature, count):
    made = engine(way("aepo", entropy_target=target, max_injected=3), script=(script := Script(forever("1112"))))
    collect = collection(made)
    collect.memory = {"entropy": np.asarray(0.55)}
    batch = collect(state_at(), 1).rollouts
    assert script.calls[1] == (1, 4, temperature)
    assert np.asarray(batch.extra["injected"]).sum() == count


@pytest.mark.parametrize(("stream", "count"), [("3233", 0), ("3433", 1)])
def test_aepo_injects_no_failure_that_is_above_others(stream, count):
    rewards = {"3": 0.0, "2": 0.01, "4": 1.0}
    made = engine(way("aepo"), script=Script(forever(stream)), verifier=lambda text, _: Verdict(rewards[text[:1]]))
    assert collection(made)(state_at(), 1).metrics["collection/injected"] == count


# --- HPT ---


def test_hpt_replaces_groups_that_fail_by_their_demonstration():
    names = order(engine())[0]
    problems = [e if e.prompt != names[1] else type(e)(e.prompt, e.reference, "87", e.id) for e in examples()]
    script = Script({names[0]: "1222", names[1]: "2222", names[2]: "3333", names[3]: "3222"})
    made = engine(way("hpt"), problems=problems, script=script)
    collected = collection(made)(state_at(), 1)
    batch = collected.rollouts
    demonstration, valid = groups_of(batch.extra["demonstration"]), groups_of(batch.valid)
    assert demonstration == [[False] * 4, [True] + [False] * 3, [False] * 4, [True] + [False] * 3]
    assert valid == [[True] * 4, [True] + [False] * 3, [True] * 4, [True] + [False] * 3]
    tokens, mask = np.asarray(batch.completions), np.asarray(batch.completion_mask)
    assert tokens[4][mask[4]].tolist() == [*TOKENIZER.encode("87"), TOKENIZER.eos_id]
    assert tokens[12][mask[12]].tolist() == [*TOKENIZER.encode("123"), TOKENIZER.eos_id]
    assert np.asarray(batch.sampler_log_probs)[4].tolist() == [0] * tokens.shape[1]
    assert np.asarray(batch.rewards)[[4, 12]].tolist() == [1, 1]
    assert np.asarray(batch.rewarded)[[4, 12]].tolist() == [True, True]
    assert not np.asarray(batch.truncated)[[4, 12]].any()
    assert groups_of(batch.rewarded)[2] == [False] * 4  # nothing was graded: nothing is known
    assert collected.metrics["collection/demonstrations"] == 0.5


@pytest.mark.parametrize(("gate", "replaced"), [(0.0, [True, False, False, False]), (0.25, [True, True, False, False]),
                                                (0.5, [True, True, True, False])])
def test_the_gate_belongs_to_the_demonstration(gate, replaced):
    names = order(engine())[0]
    outcomes = dict(zip(names, ("2222", "1222", "1122", "1112"), strict=True))
    batch = collection(engine(way("hpt", hpt_gate=gate), script=Script(outcomes)))(state_at(), 1).rollouts
    assert np.asarray(batch.extra["demonstration"])[::4].tolist() == replaced


def test_solutions_are_looked_at_first():
    run, late = tiny_run(way("hpt")), examples(3)
    check_problems(run, lambda: late, TOKENIZER)
    for solution, message in (
        ("", r"'hpt' needs a solution of every problem; example 'train/3' has none"),
        ("1234", r"max_new_tokens = 4: the solution of example 'train/3' has 5 tokens with its end token"),
    ):
        wrong = [*late[:2], type(late[2])("3", "3", solution, "train/3")]
        with pytest.raises(ConfigError, match=message) as caught:
            check_problems(run, lambda wrong=wrong: wrong, TOKENIZER)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="prompts_per_step = 4 is too many: there are 3 problems"):
        check_problems(tiny_run(way("vade")), lambda: late, TOKENIZER)
    check_problems(tiny_run(), lambda: pytest.fail("read for nothing"), TOKENIZER)  # others need no solution


# --- configurations ---


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (way("dapo"), "config.collection.method = 'dapo' is not allowed; allowed: plain, dynamic, pods, "),
        ({"collection.method": "reinforce_ada"}, "needs config.objective.estimator = 'given_baseline', not 'grpo'"),
        ({"collection.method": "gvm"}, "'gvm' needs config.objective.estimator = 'raft', not 'grpo'"),
        (GIVEN, "needs config.collection.method = 'reinforce_ada' or 'reinforce_ada_est', not 'plain'"),
        ({"objective.estimator": "darling"}, "'darling' needs config.collection.clusters = 'text', 'answer' or a fun"),
        ({"objective.estimator": "rank_grpo"}, "'rank_grpo' needs config.collection.segments = 'newline'"),
        (way("plain", max_batches=3), "max_batches = 3 has no effect here; it belongs to .*method = 'dynamic'"),
        (way("dynamic", max_batches=0), "config.collection.max_batches = 0 is not allowed; allowed: integers >= 1"),
        (way("dynamic", on_exhausted="stop"), "on_exhausted = 'stop' is not allowed; allowed: 'error', 'train'"),
        (way("plain", clusters="text"), "clusters = 'text' has no effect here; it belongs to .*estimator = 'darling'"),
        (way("plain", segments="newline"), "segments = 'newline' has no effect here; it belongs to .*'rank_grpo' or"),
        (way("pods", sampled_rollouts=4), "sampled_rollouts = 4 is not above config.sampling.rollouts_per_prompt = 4"),
        (way("reinforce_ada", round_rollouts=3), "round_rollouts = 3 is less than config.sampling.rollouts_per_prompt"),
        (way("reinforce_ada", exit_rule="any"), "exit_rule = 'any' is not allowed; allowed: 'balance', 'positive'"),
        (way("gvm", distinct_prompts=5), "distinct_prompts = 5 of 1 to 4 slots each .* cannot share .* = 4 slots"),
        (way("gvm", distinct_prompts=1, max_slots=3), "distinct_prompts = 1 of 1 to 3 slots each"),
        (way("gvm", gvm_beta=0.5), "gvm_beta = 0.5 is not allowed; allowed: finite numbers >= 1"),
        (way("vade", decay_others=1.5), r"decay_others = 1.5 is not allowed; allowed: numbers in \[0, 1\]"),
        (way("aepo", temperature_low=0.0), "temperature_low = 0.0 is not allowed; allowed: finite numbers > 0"),
        (way("hpt", hpt_gate=float("nan")), "hpt_gate = nan is not allowed; allowed: finite numbers"),
        (way("plain", clusters="words"), "clusters = 'words' is not allowed; allowed: '', 'text', 'answer', a fun"),
        (way("plain", segments="line"), "segments = 'line' is not allowed; allowed: '', 'newline'"),
        (way("plain", pilots="8"), "config.collection.pilots = '8' is not allowed; allowed: int"),
    ],
)
def test_a_wrong_configuration_is_one_line(overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        tiny_run(overrides)
    assert "\n" not in str(caught.value)


def test_an_injected_row_takes_the_place_of_one_that_was_not_graded():
    names = order(engine())[0]
    script = Script({name: "2222" for name in names[1:]} | {names[0]: "3122" + "1212"})
    batch = collection(engine(way("aepo"), script=script))(state_at(), 1).rollouts
    assert groups_of(numbers_of(batch))[0] == [4, 6, 2, 3]
    assert groups_of(batch.rewarded)[0] == [True] * 4
    assert groups_of(batch.rewards)[0] == [1, 1, 0, 0]  # its own where there is none to keep


@pytest.mark.mesh
@pytest.mark.parametrize("method", [pytest.param("gvm", marks=pytest.mark.slow), "reinforce_ada"])
def test_four_devices_collect_what_one_does(method):
    options = {"distinct_prompts": 4, "pilots": 4} if method == "gvm" else {"max_rounds": 2}
    overrides = way(method, **options)
    one, four = (
        collection(engine(overrides | {"mesh.data": data, "mesh.fsdp": data}))(state_at(), 1) for data in (1, 2)
    )
    assert one.rollouts.completions.tolist() == four.rollouts.completions.tolist()
    np.testing.assert_array_equal(one.rollouts.rewards, four.rollouts.rewards)  # NaN where missing
    for name, value in one.rollouts.extra.items():
        np.testing.assert_allclose(value, four.rollouts.extra[name], rtol=1e-4)
        assert len(four.rollouts.extra[name].sharding.device_set) == 4
    assert one.metrics == pytest.approx(four.metrics, rel=1e-4)


def test_the_parts_of_a_mixture_are_told_apart():
    made = engine(way("dynamic"), problems=examples(12), script=Script(forever("1222")))
    made = dataclasses.replace(made, run=dataclasses.replace(made.run, task_name="mixture"))
    assert collection(made)(state_at(), 1).metrics["reward/train"] == 0.25  # ids begin with the part's name
