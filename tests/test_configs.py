"""Every configuration: all its forms, what they say about themselves, and that they parse where their model is."""

from __future__ import annotations

import importlib
import re

import pytest

from salt_jax.run.config import parse

FORMS = {
    "arithmetic": ("full", "small"),
    "smollm2_chain_sum": ("full", "cpu", "small"),
    "smollm2_gsm_symbolic": ("full", "small"),
    "qwen2_5_1_5b_gsm8k": ("full", "small"),
    "r1_distill_qwen_1_5b_math": ("grpo", "dapo", "evaluate", "small"),
    "r1_distill_qwen_7b_math": ("grpo", "dapo", "evaluate", "small"),
    "mbpp_7b": ("full", "small"),
}
ALL = [(name, form) for name, forms in FORMS.items() for form in forms]


def load(name: str):
    return importlib.import_module(f"configs.{name}")


@pytest.mark.parametrize("name", FORMS)
def test_a_configuration_says_how_it_is_run_and_on_what(name):
    text = load(name).__doc__
    assert f"--config=configs/{name}.py" in text
    assert re.search(r"Hardware: |Result \(", text)
    with pytest.raises(ValueError, match=f"{name}.py:other is unknown; allowed: {FORMS[name][0]}"):
        load(name).get_config("other")


@pytest.mark.parametrize(("name", "form"), ALL)
def test_a_batch_divides_and_a_small_form_is_small(name, form):
    c = load(name).get_config(form)
    rows = c.sampling.prompts_per_step * c.sampling.rollouts_per_prompt
    assert rows % (c.learner.minibatches * c.learner.microbatches) == 0
    assert c.sampling.prompts_per_step % (c.mesh.data * c.mesh.fsdp) == 0
    if form == "small":
        assert c.steps * rows <= 18 * 32
        assert c.mesh.data * c.mesh.fsdp * c.mesh.tensor == 1


def test_the_papers_table_4():
    """arXiv 2606.05800, as the design's section 7 has it."""
    for name in ("r1_distill_qwen_1_5b_math", "r1_distill_qwen_7b_math"):
        for form, clip_high, kl in (("grpo", 0.2, 0.001), ("dapo", 0.28, 0.0)):
            c = load(name).get_config(form)
            assert (c.sampling.prompts_per_step, c.sampling.rollouts_per_prompt, c.learner.minibatches) == (64, 8, 2)
            assert (c.sampling.max_prompt_length, c.sampling.max_new_tokens) == (1024, 8192)
            assert (c.sampling.temperature, c.optimizer.learning_rate) == (0.6, 1e-6)
            assert (c.objective.clip_low, c.objective.clip_high) == (0.2, clip_high)
            assert (c.objective.kl_coef, c.objective.kl_estimator, c.objective.entropy_coef) == (kl, "k3", 0.0)
            assert c.collection.method == {"grpo": "plain", "dapo": "dynamic"}[form]
            assert c.steps == 2 * 7500 // 64


@pytest.mark.parametrize("name", [name for name in FORMS if name != "arithmetic"])
def test_small_forms_parse_and_have_the_shape_of_smollm2(name):
    run = parse(load(name).get_config("small"))
    assert (run.policy.num_layers, run.policy.d_model, run.policy.vocab_size) == (30, 576, 49_152)
