"""The study of frozen checkpoints: statistics of a Gram matrix against loops, what is dealt, features, and refusals."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import arithmetic
from experiments.study import geometry, geometry_proxy, geometry_report, geometry_rollouts
from experiments.study import geometry_statistics as statistics
from salt_jax import geometry as library
from salt_jax.policy.logprobs import completion_scores
from salt_jax.run import setup
from salt_jax.spec import ConfigError


def grams_of(units: int, size: int, dimension: int = 7, seed: int = 0) -> np.ndarray:
    features = np.random.default_rng(seed).standard_normal((units, size, dimension)) + 0.3
    return np.einsum("uid,ujd->uij", features, features)


def advantages_of(units: int, size: int, seed: int = 1) -> np.ndarray:
    rewards = np.random.default_rng(seed).integers(0, 2, (units, size)).astype(float)
    rewards[:, 0], rewards[:, 1] = 1, 0
    return geometry.advantages(rewards)


# --- statistics of units, against loops ---


@pytest.mark.parametrize(("units", "size"), [(3, 5), (4, 2), (1, 4)])
def test_statistics_of_units_are_those_of_loops(units, size):
    gram, a = grams_of(units, size), advantages_of(units, size)
    total, bottom = statistics.parts(gram, a)
    for u in range(units):
        n = d = squares = trace = everything = square = 0.0
        for i in range(size):
            d += a[u, i] ** 2 * gram[u, i, i]
            squares += (a[u, i] ** 2 * gram[u, i, i]) ** 2
            trace += gram[u, i, i]
            for j in range(size):
                n += a[u, i] * a[u, j] * gram[u, i, j]
                everything += gram[u, i, j]
                square += gram[u, i, j] ** 2
        assert total[u] == pytest.approx(n, rel=1e-12)
        assert bottom[u] == pytest.approx(d, rel=1e-12)
        assert statistics.kish(gram, a)[u] == pytest.approx(d**2 / squares, rel=1e-12)
        assert statistics.participation_ratios(gram)[u] == pytest.approx(trace**2 / square, rel=1e-12)
        assert statistics.residual_shares(gram)[u] == pytest.approx((trace - everything / size) / trace, rel=1e-12)


@pytest.mark.parametrize("case", ["no signal", "no features", "one unit of three has signal"])
def test_units_without_signal_count_nowhere(case):
    gram, a = grams_of(3, 4), advantages_of(3, 4)
    expected = gram[:1], a[:1]
    if case == "no features":
        gram = np.zeros_like(gram)
    a[1:] = 0
    if case == "no signal":
        a[0] = 0
    nulls = {"group": statistics.permuted(a, 4, 5, seed=0)}
    found = statistics.cell(gram, a, np.arange(3), nulls)
    if case != "one unit of three has signal":
        assert found["signal"] == 0
        assert all(value is None for name, value in found.items() if name not in ("units", "signal"))
        return
    alone = statistics.cell(*expected, np.arange(1), {"group": statistics.permuted(expected[1], 4, 5, seed=0)})
    assert found["signal"] == pytest.approx(1 / 3)
    for name in ("ratio", "mean", "median", "kish", "pr", "residual", "alpha", "k", "cosine"):
        assert found[name] == pytest.approx(alone[name]), name
    assert found["ratio_se"] is None


def test_a_cell_tells_the_ratio_of_means_from_the_mean_of_ratios():
    """Unit 0 cancels and is small, unit 1 agrees and is large."""
    gram = np.stack([np.ones((2, 2)), 100 * np.array([[1.0, -1.0], [-1.0, 1.0]]), np.eye(2)])
    a = np.tile([1.0, -1.0], (3, 1))
    found = statistics.cell(gram, a, np.arange(3), {})
    assert found["ratio"] == pytest.approx((0 + 400 + 2) / (2 + 200 + 2))
    assert found["mean"] == pytest.approx((0 + 2 + 1) / 3)
    assert found["median"] == pytest.approx(1)
    assert found["kish"] == pytest.approx(2)
    assert found["alpha"] == pytest.approx(1 / 3, abs=1e-5)  # 1, 0, 0


def test_updates_of_groups_are_those_of_the_metrics():
    gram = grams_of(1, 12)[0]
    a = advantages_of(4, 3).reshape(-1)
    a[3:6] = 0  # a unanimous group
    n_eff, pr = statistics.between(gram, a, 3)
    summary = library.geometry_summary(jnp.asarray(gram), jnp.asarray(a), group_size=3)
    assert n_eff == pytest.approx(float(summary["n_eff_out"]), rel=1e-4)
    assert pr == pytest.approx(float(summary["participation_ratio_out"]), rel=1e-4)
    assert statistics.between(gram, np.zeros(12), 3) == (0.0, 0.0)


# --- the common mean, its error and its null ---


@pytest.mark.parametrize("size", [2, 5])
def test_the_common_mean_is_that_of_loops_and_prompts_are_left_out_whole(size):
    gram, prompts = grams_of(6, size), np.array([0, 0, 1, 2, 2, 2])

    def estimate(units: list[int]) -> float:
        off = [gram[u, i, j] for u in units for i in range(size) for j in range(size) if i != j]
        return float(np.mean(off) / np.mean([gram[u, i, i] for u in units for i in range(size)]))

    value, error = statistics.common_mean(gram, prompts)
    assert value == pytest.approx(estimate(list(range(6))), rel=1e-12)
    without = np.array([estimate([u for u in range(6) if prompts[u] != left]) for left in range(3)])
    assert error == pytest.approx(np.sqrt(2 / 3 * np.sum((without - without.mean()) ** 2)), rel=1e-12)


def test_nothing_divided_by_nothing_has_no_value():
    assert statistics.common_mean(np.zeros((2, 3, 3)), np.arange(2)) == (None, None)
    assert statistics.under(np.zeros((1, 2, 2)), np.ones((1, 2, 3))) == (None, None)


def test_permuted_within_groups_n_eff_is_one_minus_the_common_mean():
    """Over all permutations of each of two groups, exactly: groups weigh by Σa² here, and both have the same."""
    gram = grams_of(1, 6)[0]
    a = geometry.advantages(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    every = [np.concatenate([a[0][list(p)], a[1][list(q)]])
             for p in itertools.permutations(range(3)) for q in itertools.permutations(range(3))]  # fmt: skip
    found, _ = statistics.under(gram[None], np.stack(every, axis=1)[None])
    mu2, _ = statistics.common_mean(statistics.blocks_of(gram, 3), np.arange(2))
    assert found == pytest.approx(1 - mu2, rel=1e-6)  # advantages are float32


def test_a_permutation_stays_in_its_group():
    a = np.arange(12.0).reshape(2, 6)
    drawn = statistics.permuted(a, 3, 50, seed=0)
    assert drawn.shape == (2, 6, 50)
    groups = np.sort(np.moveaxis(drawn, 2, 0).reshape(50, 4, 3), axis=2)
    assert (groups == np.arange(12.0).reshape(4, 3)).all()
    assert len({tuple(one) for one in drawn.reshape(12, 50).T}) > 10


def test_the_null_of_a_prompt_permutes_among_all_its_rollouts():
    flags, _ = geometry.arguments_of(
        ["--json=x", "--prompts=2", "--rollouts=4", "--rows=4", "--batches=2", "--permutations=300"]
    )
    rewards = np.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])  # as they stand no group of 2 has signal
    batch = geometry.dealt(rewards, 2, flags)
    assert (batch.advantages == 0).all()
    of_first, of_second = batch.null[[0, 1, 4, 5]], batch.null[[2, 3, 6, 7]]
    assert 0.5 < np.mean(of_first != 0) < 0.8  # 2 of 3 ways to pair two successes with two failures
    assert (of_second == 0).all()


# --- which rollouts ---


@pytest.mark.parametrize(("prompts", "group"), [(8, 2), (8, 8), (2, 2), (3, 4), (2, 8)])
def test_mini_batches_are_of_as_many_prompts_as_there_are(prompts, group):
    rollouts, rows = 8, 16
    dealt = [geometry_rollouts.deal(i, prompts=prompts, rollouts=rollouts, group=group, rows=rows)
             for i in range(prompts * rollouts // rows)]  # fmt: skip
    taken = np.concatenate(dealt).reshape(-1)
    assert len(set(taken.tolist())) == len(taken)
    assert taken.max() < prompts * rollouts
    for one in dealt:
        assert one.shape == (rows // group, group)
        assert (np.diff(one) == 1).all()
        of_prompts = one // rollouts
        assert (of_prompts == of_prompts[:, :1]).all()
        assert len(np.unique(of_prompts)) == min(prompts, rows // group)


# --- the proxy ---


def test_spearman_is_that_of_ranks_in_a_loop():
    x, y = np.array([3.0, 1.0, 3.0, 2.0, 5.0]), np.array([1.0, 1.0, 4.0, 0.0, 2.0])

    def slow(values: np.ndarray) -> np.ndarray:
        return np.array([1 + sum(o < v for o in values) + (sum(o == v for o in values) - 1) / 2 for v in values])

    assert geometry_proxy.spearman(x, y) == pytest.approx(np.corrcoef(slow(x), slow(y))[0, 1], rel=1e-12)
    assert geometry_proxy.spearman(x, np.ones(5)) == 0


def test_the_comparison_finds_what_is_alike_and_what_is_not():
    gram, other = grams_of(1, 12)[0], grams_of(1, 12, seed=5)[0]
    a = advantages_of(3, 4).reshape(-1)
    same = geometry_proxy.compare(gram, 3 * gram, a)
    for name in ("spearman", "sign", "overlap", "k_match", "cosine"):
        assert same[name] == pytest.approx(1, abs=1e-5), name
    assert same["pr_error"] == pytest.approx(0, abs=1e-12)
    different = geometry_proxy.compare(gram, other, a)
    assert different["sign"] == np.mean([
        np.sign(gram[i, j]) == np.sign(other[i, j]) for i in range(12) for j in range(i + 1, 12)
    ])  # fmt: skip
    ratio = [np.trace(k) ** 2 / np.sum(k**2) for k in (gram, other)]
    assert different["pr_error"] == pytest.approx(abs(ratio[0] / ratio[1] - 1), rel=1e-12)
    k = int(different["k_proxy"])
    assert k == round(ratio[0])
    projectors = [v[:, -k:] @ v[:, -k:].T for v in (np.linalg.eigh(one)[1] for one in (gram, other))]
    assert different["overlap"] == pytest.approx(np.trace(projectors[0] @ projectors[1]) / k, rel=1e-9)
    assert geometry_proxy.compare(gram, other, 0 * a)["cosine"] is None


def test_nulls_keep_what_they_say_and_lose_the_rest():
    gram, a = grams_of(1, 24, dimension=3)[0], advantages_of(6, 4).reshape(-1)
    found = geometry_proxy.against([gram] * 8, [gram] * 8, [a] * 8, seed=0)
    assert found["measured"]["spearman"] == pytest.approx(1)
    assert abs(found["permuted"]["spearman"]) < 0.2
    assert abs(found["noise"]["spearman"]) < 0.2
    assert found["permuted"]["pr_error"] == pytest.approx(0, abs=1e-12)
    assert np.diagonal(geometry_proxy.noise_like(gram, np.random.default_rng(0))) == pytest.approx(np.diagonal(gram))


# --- features of a small policy, against dense gradients ---


def test_features_are_gradients_at_the_temperature_sampled_from(tmp_path: Path):
    config = arithmetic.get_config("small")
    config.salt.length_normalize = False  # the run's own choices of a feature are not asked
    run = setup.parse(config)
    task = setup.make_task(run, tmp_path, None)
    frozen = geometry_rollouts.Frozen(run, task, task.grade, rollouts=4)
    params = setup.initial_params(run, frozen.shape, jax.random.key(0), frozen.mesh)
    pool = frozen.pool(params, 3, 0.6, seed=0)
    rows = np.array([1, 4, 5, 6, 9, 11])
    one = jax.tree.map(lambda x: jnp.asarray(x[rows]), pool.rollouts)

    def scores(params, temperature=0.6):
        return completion_scores(nnx.merge(frozen._policy, params), one, group_size=1, temperature=temperature)

    drawn = np.where(one.completion_mask, one.sampler_log_probs, 0)
    assert drawn == pytest.approx(np.where(one.completion_mask, scores(params).log_probs, 0), abs=1e-4)
    lengths = np.asarray(one.completion_mask.sum(axis=1), float)
    assert len(set(lengths)) > 1  # or sum and mean are the same

    def losses(params):
        return -jnp.sum(jnp.where(one.loss_mask, scores(params).log_probs, 0), axis=1) / lengths

    dense = jax.jit(jax.jacrev(losses))(params)

    def gram_of(tree) -> np.ndarray:
        features = np.concatenate([np.asarray(x, float).reshape(len(rows), -1) for x in jax.tree.leaves(tree)], axis=1)
        return features @ features.T

    head = nnx.merge(frozen._policy, params).lm_head
    hidden = np.asarray(scores(params).hidden, float)
    logits = hidden @ np.asarray(head, float) / 0.6
    taken = np.eye(head.shape[1])[np.asarray(one.completions)]
    weight = np.asarray(one.completion_mask, float) / lengths[:, None]
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    mean = gram_of(np.einsum("mtv,mth,mt->mvh", probabilities - taken, hidden, weight))
    expected = {
        "score_mean": mean, "score_sum": mean * np.outer(lengths, lengths),
        "taken_token": gram_of(np.einsum("mtv,mth,mt->mvh", taken, hidden, weight)),
        "last_block": gram_of(jax.tree.map(lambda x: x[:, -1], dense["layers"])), "all": gram_of(dense),
    }  # fmt: skip
    assert tuple(sorted(expected)) == tuple(sorted(geometry_rollouts.FEATURES))
    for feature, wanted in expected.items():
        found = frozen.gram(params, pool, feature, rows)
        assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max(), feature
    assert frozen.features_size("all", 10) == 40 * sum(x.size for x in jax.tree.leaves(params))
    assert frozen.features_size("score_mean", 10) == 0 < frozen.features_size("last_block", 10)
    with pytest.raises(ConfigError, match="--prompts=61 is more than there is: 60 training problems"):
        frozen.pool(params, 61, 0.6, seed=0)


# --- all of a pool ---


class Counted:
    """Stands for ``Frozen``: the features of rollout i are row i of a matrix."""

    def __init__(self, features: np.ndarray) -> None:
        self.features, self.calls = features, 0

    def gram(self, params, pool, feature, rows) -> np.ndarray:
        self.calls += 1
        return self.features[rows] @ self.features[rows].T


@pytest.mark.parametrize(("prompts", "calls"), [(2, 1), (8, 2)])
def test_each_unit_has_its_own_rollouts_and_advantages(prompts, calls):
    """Where prompts are few every G has the same rows, in another order, and one Gram matrix serves."""
    flags, _ = geometry.arguments_of([
        "--json=x", f"--prompts={prompts}", "--rollouts=8", "--rows=16", "--batches=1", "--groups=2,8",
        "--permutations=3", "--proxy_group=8", "--proxy_rows=8,16",
    ])  # fmt: skip
    rng = np.random.default_rng(3)
    rewards = rng.integers(0, 2, prompts * 8).astype(np.float32)
    frozen = Counted(rng.standard_normal((prompts * 8, 5)))
    rollouts = type("Rollouts", (), {"rewards": rewards})
    pool = geometry_rollouts.Pool(rollouts, np.zeros(0), np.zeros(0), 1.0, {})
    cells, proxy = geometry.of_pool(frozen, None, pool, ["score_mean", "all"], flags)
    assert frozen.calls == 2 * calls
    assert {tuple(row) for row in cells} == {tuple(cells[0])}
    assert set(cells[0]) | {"step", "temperature"} == set(geometry.CELLS)
    assert set(proxy[0]) | {"step", "temperature"} == set(geometry.PROXIES)
    for group in (2, 8):
        rows = geometry_rollouts.deal(0, prompts=prompts, rollouts=8, group=group, rows=16)
        a = geometry.advantages(rewards[rows].astype(float))
        updates = np.einsum("bg,bgd->bd", a, frozen.features[rows])
        squares = np.einsum("bg,bgd->b", a**2, frozen.features[rows] ** 2)[:, None]
        of = {row["scope"]: row for row in cells if row["group"] == group and row["feature"] == "all"}
        assert of["group"]["ratio"] == pytest.approx(np.sum(updates**2) / squares.sum(), rel=1e-9)
        assert of["mini_batch"]["ratio"] == pytest.approx(np.sum(updates.sum(0) ** 2) / squares.sum(), rel=1e-9)
        by_prompt = statistics.jackknife(np.sum(updates**2, axis=1), squares.sum(axis=1), rows[:, 0] // 8)
        assert of["group"]["ratio_se"] == pytest.approx(by_prompt[1], rel=1e-9)  # groups of one prompt together
        assert of["mini_batch"]["units"] == 1
        assert of["rows_4"]["units"] == 4
        out = np.sum(updates.sum(0) ** 2) / np.sum(updates**2)
        assert of["mini_batch"]["out"] == pytest.approx(out, rel=1e-9)
        assert of["group"]["out"] is None
    measured = [row for row in proxy if row["against"] == "measured"]  # a feature against itself
    assert [(row["rows"], row["batches"]) for row in measured] == [(8, 2), (16, 1)]
    assert all(row["spearman"] == pytest.approx(1) and row["overlap"] == pytest.approx(1) for row in measured)


# --- the command ---


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a run with --run, or a pretrained model's configuration with --config"),
        (["--run=r", "--config=c"], "one of the two"),
        (["--run=r", "--config.steps=3"], "--config.steps changes nothing of --run=r"),
        (["--config=c", "--checkpoint=3"], "--checkpoint=3 needs --run"),
        (["--run=r", "--groups=2,3"], "--groups: 3 is not allowed; allowed: divisors, 2 or more, of --rollouts=64"),
        (["--run=r", "--groups=1"], "--groups: 1 is not allowed"),
        (["--run=r", "--rollouts=32"], "--groups: 64 is not allowed"),
        (["--run=r", "--rows=66", "--groups=2"], "--rows=66 is not allowed; allowed: multiples of 4"),
        (["--run=r", "--temperatures=0,1"], "--temperatures: 0 is not allowed"),
        (["--run=r", "--temperatures=nan"], "--temperatures: nan is not allowed"),
        (["--run=r", "--features=score_sum,lm_head"], "--features: 'lm_head' is unknown; allowed: score_sum, "),
        (["--run=r", "--batches=33"], "--batches=33 is more than there is: 512 prompts x 64 rollouts make 32 of 1024"),
        (["--run=r", "--batches=0"], "--batches=0 is not allowed"),
        (["--run=r", "--memory_gib=0"], "--memory_gib=0 is not allowed"),
        (["--run=r", "--seed=-1"], "--seed=-1 is not allowed"),
        (["--run=r", "--groups=2,4"], "--proxy_group=16 is not one of --groups"),
        (["--run=r", "--proxy_rows=24"], "--proxy_rows: 24 is not allowed; allowed: divisors of --rows=1024"),
        (["--run=r"], "--run=r is not a run: it has no config.json"),
        (["--config=c"], "--config=c is not a file"),
    ],
)
def test_wrong_input_is_one_line(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert geometry.main([*arguments, "--json=out.json"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
    assert list(tmp_path.iterdir()) == []


def test_a_result_is_not_overwritten_and_its_folder_must_be_there(capsys, tmp_path):
    (tmp_path / "there.json").write_text("mine")
    for name, said in (("there.json", "is there already"), ("no/out.json", "there is no folder")):
        assert geometry.main(["--run=r", f"--json={tmp_path / name}"]) == 2
        assert said in capsys.readouterr().err
    assert (tmp_path / "there.json").read_text() == "mine"


def test_a_proxy_group_matters_only_where_there_is_a_proxy(tmp_path):
    flags, changes = geometry.arguments_of(
        ["--run=r", f"--json={tmp_path / 'o.json'}", "--groups=2,4", "--features=score_mean,taken_token"]
    )
    geometry.check(flags, changes)


def test_the_file_holds_a_line_for_each_row():
    row = dict.fromkeys(geometry.CELLS) | {"ratio": 0.123456789, "step": 3, "feature": "all"}
    text = geometry.text_of({"date": "today"}, {"policies": [], "cells": [row, row], "proxy": []})
    read = json.loads(text)
    assert read["date"] == "today"
    assert dict(zip(read["cells"]["columns"], read["cells"]["rows"][1], strict=True)) == row | {"ratio": 0.12346}
    assert sum(line.startswith("[3,") for line in text.splitlines()) == 2


# --- its report ---


def result_file(path: Path) -> Path:
    row = dict.fromkeys(geometry.CELLS) | {"step": 3, "temperature": 1.0, "feature": "score_sum", "group": 2}
    row["mu2"] = -0.1
    row |= {"ratio": 1.25, "prompt_ratio": 0.75}
    cells = [row | {"scope": scope} for scope in ("mini_batch", "group", "rows_4")]
    cells += [one | {"group": 16, "ratio": 4.5, "prompt_ratio": 1.0, "mu2": 0.25, "mu2_se": 0.01} for one in cells]
    policy = dict.fromkeys(geometry.POLICIES, 0.5) | {"step": 3, "temperature": 1.0}
    proxy = dict.fromkeys(geometry.PROXIES) | {"step": 3, "temperature": 1.0, "reference": "all", "rows": 64,
                                               "against": "noise", "overlap": 0.125}  # fmt: skip
    about = {"commit": "abcdef0123", "date": "2026-01-02T", "source": {"task": "arithmetic", "run": "grpo"}}
    path.write_text(geometry.text_of(about, {"policies": [policy], "cells": cells, "proxy": [proxy]}))
    return path


def test_tables_and_plot_say_what_the_file_says(tmp_path, capsys):
    png = tmp_path / "n_eff.png"
    assert geometry_report.main([str(result_file(tmp_path / "a.json")), f"--plot={png}"]) == 0
    text = capsys.readouterr().out
    assert "### arithmetic, step 3, temperature 1" in text
    assert "| score, sum | 0.250 ± 0.010 | 1.25 (–) | 4.50 (–) | 0.75 (–) | 1.00 (–) | – |" in text
    assert "| score, sum | 1.25 · – · – | 4.50 · – · – |" in text
    assert "commit abcdef0, 2026-01-02" in text
    assert text.count("| score, sum | 4 rows |") == 1  # at G = 16 alone
    assert "| all parameters | 64 | noise | – | – | – | 0.12 | – | – / – | – |" in text
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"policies": 3}', '{"policies": {"columns": ["a"], "rows": [[]]}}'])
def test_what_is_no_result_is_refused_in_one_line(text, tmp_path, capsys):
    (tmp_path / "a.json").write_text(text)
    assert geometry_report.main([str(tmp_path / "a.json")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'a.json'} is no result of")
    assert error.count("\n") == 1
