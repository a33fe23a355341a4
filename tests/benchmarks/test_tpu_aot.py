"""experiments/benchmarks/tpu_aot.py: a small plan compiled for a real topology, the plans' arithmetic, its errors."""

from __future__ import annotations

import importlib.util
import json
import math

import pytest

from experiments.benchmarks import tpu_aot
from experiments.benchmarks.collectives import collectives
from experiments.benchmarks.tpu_aot import ARMS, HBM, PLANS, plan_config
from salt_jax.run import config as training_config


@pytest.fixture
def no_libtpu(monkeypatch):
    """libtpu cannot be found, whether or not it is there."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name))


def test_without_libtpu_it_is_one_clear_line(no_libtpu, tmp_path, capsys):
    assert tpu_aot.main(["--plan", "7b-v5p", "--json", str(tmp_path / "result.json")]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == (
        "",
        "error: libtpu is not installed: pip install -c constraints.txt -e '.[tpu]' (no TPU is needed)\n",
    )
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("response", [1024, 8192])
@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("name", PLANS)
def test_every_plan_is_a_configuration_that_uses_all_chips(name, arm, response):
    plan = tpu_aot.dataclasses.replace(PLANS[name], response=response)
    run = training_config.parse(plan_config(plan, arm))
    chip, _, sizes = plan.topology.partition(":")
    assert chip in HBM
    assert math.prod(plan.mesh) == math.prod(map(int, sizes.split("x")))
    assert (run.geometry.enabled, run.minibatch_rows) == (arm != "off", plan.rollouts)
    here = plan.rollouts // plan.shards // run.learner.microbatches
    assert here == 1 or here * response <= plan.tokens


def test_the_shapes_are_qwens():
    """Parameters as the published models have them: 7,615,616,512 and 1,543,714,304."""
    parameters = {}
    for name in ("7b-v5p", "1.5b-v5e"):
        plan = PLANS[name]
        run = training_config.parse(plan_config(plan, "off"))
        shape = tpu_aot.TransformerConfig(**(vars(run.policy) | {"vocab_size": plan.vocabulary}))
        state = tpu_aot.abstract_state(run, shape, tpu_aot.make_optimizer(run.optimizer, 1))
        parameters[name] = sum(math.prod(x.shape) for x in tpu_aot.jax.tree.leaves(state.params))
    assert parameters == {"7b-v5p": 7_615_616_512, "1.5b-v5e": 1_543_714_304}


@pytest.mark.libtpu
def test_a_small_plan_compiles_for_a_real_topology(tmp_path, capsys):
    path = tmp_path / "result.json"
    arguments = ["--plan", "tiny", "--salt", "exact", "--attention", "segments", "--json", str(path)]
    assert tpu_aot.main([*arguments, "--hlo", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "tiny" in out
    assert "SALT exact" in out

    result = json.loads(path.read_text())
    assert "libtpu" in result["versions"]
    (arm,) = result["plans"]["tiny"]["arms"]
    assert arm["fits"]
    plan = PLANS["tiny"]
    devices = math.prod(plan.mesh)
    # parameters and two moments in float32, split over fsdp and tensor but for norms and biases
    assert 1.0 <= arm["memory"]["arguments"] / (3 * 4 * arm["parameters"] / devices) < 1.3
    assert arm["memory"]["aliased"] > 0.9 * arm["memory"]["outputs"], "the state is donated"
    assert 0 < arm["memory"]["temporaries"] < arm["memory"]["peak"] < HBM["v5e"] * 1e9
    # the exact Gram's features, (m / fsdp, columns, D) bfloat16 in all chunks, go through an all-to-all once
    features = (plan.rollouts // plan.mesh[1]) * (plan.vocabulary // plan.mesh[2]) * plan.policy["d_model"] * 2
    sent = arm["collectives"]["all-to-all"]
    assert sent["trips_known"]
    assert features <= sent["bytes"] < 1.5 * features
    found = collectives((tmp_path / "tiny-exact.txt").read_text())
    assert len(found) == sum(kind["instructions"] for kind in arm["collectives"].values())
    # every device finds the eigenvectors of the (m, m) Gram alone: a message in their loops would be all latency
    assert [one for one in found if "jit(eigh)" in one.source or "_reweight" in one.source] == []
    found = collectives((tmp_path / "tiny-exact.txt").read_text())
    assert [one for one in found if "_reweight" in one.source] == []  # every device does the m x m part alone
    gathered = arm["collectives"]["all-gather"]
    assert gathered["bytes"] < plan.rollouts * plan.vocabulary * plan.policy["d_model"] * 2, "no gather of features"


def test_what_does_not_fit_is_said(capsys):
    refused = {"fits": False, "error": "RESOURCE_EXHAUSTED: 20G of 15G", "compile_seconds": 3.0}
    arms = [{"salt": "off", "parameters": 7} | refused]
    plan = tpu_aot.dataclasses.asdict(PLANS["7b-v5e"]) | {"microbatches": 1, "arms": arms}
    tpu_aot.print_results({"plans": {"7b-v5e": plan}, "versions": {"jax": "0"}, "commit": None})
    out = capsys.readouterr().out
    assert "7b-v5e, SALT off: RESOURCE_EXHAUSTED: 20G of 15G" in out


@pytest.mark.libtpu
def test_wrong_input_is_one_line(capsys):
    assert tpu_aot.main(["--plan", "tiny", "--microbatches", "3"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: config.learner.microbatches = 3 must divide")
    assert err.count("\n") == 1
