"""Selecting from a file with a tiny checkpoint: what is picked, what is written, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import arithmetic
from experiments import select_data
from salt_jax.learner.state import init_params, make_policy
from salt_jax.models import policy_folder
from salt_jax.models.hf import open_checkpoint
from salt_jax.run.config import OF_EVERY_TASK
from salt_jax.tasks.arithmetic import make_arithmetic
from tests.pretrained_setup import CONFIG, TEMPLATE, WORDS, model_folder
from tests.reference.selection import loop_spice

RESPONSES = ("one", "two", "two plus one", "one", "one plus two", "two two")
PROMPTS = ("one plus one ?", "one", "two ?", "two plus two ?", "?", "one one")  # the tokenizer cuts at spaces alone
ID_OF = {word: i for i, word in enumerate(WORDS)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("proxy") / "model")


def ids(text: str) -> list[int]:
    found = []
    while text:
        word = max((word for word in WORDS if text.startswith(word)), key=len)
        found.append(ID_OF[word])
        text = text[len(word) :]
    return found


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path):
    rows = [{"prompt": p, "response": r} for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    return write(tmp_path / "data.jsonl", rows)


@pytest.fixture
def command(model, data, tmp_path, capsys):
    """`command(flag=value)` -> exit status, rows written, what was said."""

    def command(*more, **flags):
        given = {"data": data, "model": model, "out": tmp_path / "out.jsonl", "batch": 2, "k": 3} | flags
        status = select_data.main([*(f"--{name}={value}" for name, value in given.items()), *more])
        said = capsys.readouterr()
        out = given["out"]
        rows = [json.loads(line) for line in out.read_text().splitlines()] if status == 0 else []
        return status, rows, said.out if status == 0 else said.err

    return command


@functools.cache
def gradients(model, parameter: str) -> np.ndarray:
    """Of each example's mean negative log-likelihood, by plain logits, one example at a time without padding."""
    checkpoint = open_checkpoint(model)
    policy, params = make_policy(checkpoint.config), checkpoint.load()

    @jax.jit
    def gradient(params, tokens, weights):
        def loss(leaf):
            logits = nnx.merge(policy, params | {parameter: leaf})(tokens[None])[0]
            taken = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.roll(tokens, -1)[:, None], axis=1)[:, 0]
            return -jnp.sum(taken * weights)

        return jax.grad(loss)(params[parameter])

    rows = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        before = [ID_OF["<user>"], *ids(prompt), ID_OF["<assistant>"]]
        after = [*ids(response), ID_OF["<end>"]]
        tokens, weights = np.zeros(16, np.int32), np.zeros(16, np.float32)
        tokens[: len(before) + len(after)] = before + after
        weights[len(before) - 1 : len(before) + len(after) - 1] = 1 / len(after)
        rows.append(np.asarray(gradient(params, tokens, weights)).reshape(-1))
    return np.array(rows, np.float64)


def test_the_words_are_the_template_of_the_tokenizer():
    assert TEMPLATE.count("<assistant>") == 1
    assert ids("one plus") == [ID_OF["one"], ID_OF[" "], ID_OF["plus"]]


@pytest.mark.parametrize(
    ("features", "parameter"), [("lm_head", "head"), ("lm_head_sketch", "head"), ("per_rollout", "final_norm")]
)
def test_spice_on_every_feature_is_the_loop_on_plain_gradients(features, parameter, command, model):
    # ranks of the sketch are above the tiny model's, so that it is exact
    status, rows, said = command(features=features, alpha=30.0, penalty=0.5, k=4)
    assert status == 0, said
    order, gains, conflicts, scores = loop_spice(gradients(model, parameter), 4, 30.0, 0.5)
    assert [row["index"] for row in rows] == order.tolist()
    assert [row["rank"] for row in rows] == [0, 1, 2, 3]
    assert list(rows[0]) == ["index", "pool", "rank", "score", "conflict", "gain"]
    for name, expected in (("gain", gains), ("conflict", conflicts), ("score", scores)):
        np.testing.assert_allclose([row[name] for row in rows], expected, rtol=1e-3, atol=1e-4)
    assert said.startswith(f"spice on {features}: 4 of 6 examples in one pool; Vendi score of the selection ")


def test_pools_are_the_file_shuffled_and_the_last_is_smaller(command, tmp_path):
    status, rows, said = command(pool=4, k=2, method="gvendi")
    assert status == 0, said
    assert [(row["pool"], row["rank"]) for row in rows] == [(0, 0), (0, 1), (1, 0)]
    shuffled = np.random.default_rng(0).permutation(6)
    assert {row["index"] for row in rows[:2]} < set(shuffled[:4].tolist())
    assert rows[2]["index"] in shuffled[4:]
    assert "3 of 6 examples in 2 pools" in said
    again = command(pool=4, k=2, method="gvendi", out=tmp_path / "again.jsonl")
    assert again[1] == rows


def test_validation_decides_for_greats_and_less(command, model, tmp_path):
    # the validation set is example 4, in the form of a conversation
    messages = [{"role": "user", "content": PROMPTS[4]}, {"role": "assistant", "content": RESPONSES[4]}]
    judge = write(tmp_path / "judge.jsonl", [{"messages": messages, "subtask": "sums"}])
    gram = gradients(model, "head")
    gram = gram @ gram.T
    lengths = np.sqrt(np.diagonal(gram))
    status, rows, said = command(method="less", validation=judge)
    assert status == 0, said
    cosines = gram[4] / lengths / lengths[4]
    assert [row["index"] for row in rows] == np.argsort(-cosines)[:3].tolist()
    np.testing.assert_allclose([row["score"] for row in rows], np.sort(cosines)[::-1][:3], rtol=1e-3)
    status, rows, said = command(method="greats", validation=judge, learning_rate=1e-3, out=tmp_path / "greats.jsonl")
    assert status == 0, said
    assert [row["index"] for row in rows] == np.argsort(-gram[4])[:3].tolist()  # so small a step: no second term


def test_vendi_compares_hidden_states(command):
    status, rows, said = command(method="vendi", k=6)
    assert status == 0, said
    assert sorted(row["index"] for row in rows) == list(range(6))
    assert said.startswith("vendi on hidden: 6 of 6")
    assert rows[0]["score"] == pytest.approx(1)


def test_a_run_that_began_at_random_lends_its_tasks_tokenizer(command, data, tmp_path):
    config = arithmetic.get_config("small")
    config.task.num_train, config.task.num_test = 8, 8
    settings = {k: v for k, v in config.task.items() if k not in OF_EVERY_TASK}
    tokenizer = make_arithmetic(tmp_path / "task", **settings).tokenizer
    shape = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size)
    run = tmp_path / "run"
    run.mkdir()
    (run / "policy.json").write_text(policy_folder.policy_text(shape, None))
    (run / "config.json").write_text(json.dumps(config.to_dict()))
    policy_folder.save(init_params(shape, jax.random.key(0)), (run / "params").absolute())
    rows = [{"prompt": f"{a}+{a}=", "response": f"{2 * a}"} for a in range(1, 5)]
    before = sorted(run.iterdir())
    status, rows, said = command(model=run, data=write(data, rows), k=2)
    assert status == 0, said
    assert len({row["index"] for row in rows}) == 2
    assert sorted(run.iterdir()) == before


def test_longer_rows_are_refused_or_left_out(command, tmp_path):
    status, _, said = command(max_response=3)
    assert (status, said) == (2, said)
    assert "line 3: the response has 6 tokens, --max_response = 3; raise it, or --on_long=skip" in said
    status, rows, said = command(max_response=3, on_long="skip", k=2)
    assert status == 0
    assert {row["index"] for row in rows} < {0, 1, 3}
    assert "2 of 3 examples (3 too long were left out)" in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"method": "salt"}, ["salt", "spice", "gvendi"]),
        ({"k": 0}, ["--k=0", ">= 1"]),
        ({"k": 200}, ["--k=200", "--pool=128"]),
        ({"k": 7}, ["--k=7 is more than there is: 6"]),
        ({"method": "less"}, ["--method=less needs --validation=FILE"]),
        ({"validation": "x.jsonl"}, ["--validation=x.jsonl has no effect here", "--method=greats or --method=less"]),
        ({"method": "gvendi", "alpha": "5"}, ["--alpha=5.0 has no effect here", "--method=spice"]),
        ({"subset": "layers"}, ["--subset=layers has no effect here", "--features=per_rollout"]),
        ({"method": "vendi", "features": "lm_head"}, ["--method=gvendi"]),
        ({"features": "per_rollout", "subset": "("}, ["--subset='('"]),
        ({"features": "per_rollout", "subset": "nose"}, ["--subset='nose' matches none of", "final_norm"]),
        ({"alpha": 0.0}, ["alpha = 0.0", "> 0"]),
        ({"omega": 1.0}, ["omega = 1.0"]),
        ({"model": "nowhere"}, ["--model: nowhere does not exist"]),
        ({"data": "nowhere.jsonl"}, ["--data: nowhere.jsonl does not exist"]),
        ({"response": "answer"}, ["data.jsonl line 1: 'answer' is missing", "prompt, response"]),
        ({"chat": ""}, ["--chat"]),
        ({"on_long": "skip", "max_prompt": 1}, ["leaves no row of --data"]),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_before_anything_runs(flags, words, command, tmp_path, monkeypatch):
    monkeypatch.setattr(select_data, "Proxy", None)  # whatever comes so far would fail otherwise
    status, _, said = command(**flags)
    assert status == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    for word in words:
        assert word in said
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [{"role": "user", "content": "one"}]}, "must end with the assistant's answer"),
        ({"messages": [{"role": "assistant", "content": "one"}]}, "must end with the assistant's answer"),
        ({"messages": ["one"]}, "'messages[0]' must be a message"),
        ({"messages": "one"}, "must end with the assistant's answer"),
        ({"prompt": [{"role": "user"}], "response": "one"}, "'content' is missing"),
        ({"prompt": "one", "response": " "}, "'response' is empty"),
    ],
)
def test_wrong_rows_are_named(row, words, command, data):
    status, _, said = command(data=write(data, [row]))
    assert status == 2
    assert "line 1" in said
    assert words in said


def test_nothing_is_overwritten(command, tmp_path):
    (tmp_path / "out.jsonl").write_text("mine")
    status, _, said = command()
    assert (status, (tmp_path / "out.jsonl").read_text()) == (2, "mine")
    assert "is there already" in said
    assert "no folder to be in" in command(out=tmp_path / "no" / "out.jsonl")[2]


def test_gradients_that_are_not_finite_are_refused(command, monkeypatch):
    class Broken:
        def __init__(self, *args, **options):
            pass

        def gram(self, rows):
            return jnp.full((len(rows.targets),) * 2, jnp.nan)

    monkeypatch.setattr(select_data, "Proxy", Broken)
    status, _, said = command()
    assert status == 2
    assert "gradients of pool 0 are not finite" in said
