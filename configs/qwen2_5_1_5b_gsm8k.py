"""Qwen2.5-1.5B-Instruct on GSM8K, with GRPO + SALT.

    pip install -e '.[hf,math]'
    python -m experiments.train --config=configs/qwen2_5_1_5b_gsm8k.py --workdir=runs/gsm8k \
        --config.model.path=DIR_OF_QWEN2.5-1.5B-INSTRUCT --config.task.path=DIR_WITH_GSM8K

DIR_WITH_GSM8K is a folder with train.jsonl and test.jsonl (or .parquet), columns question and answer, or a prepared
TFDS data set (salt_jax/tasks/gsm8k.py says how to get either). Hardware: 8 GPUs of 80 GB; parameters, gradients,
Adam's moments and the reference are 20 bytes a parameter over fsdp, 3.9 GB a device. Not run.
"""

from ml_collections import config_dict

from configs import base


def get_config(size: str = "full") -> config_dict.ConfigDict:
    """``full``, or ``small``: SmolLM2 in its place, two steps of short completions."""
    if size not in ("full", "small"):
        raise ValueError(f"configs/qwen2_5_1_5b_gsm8k.py:{size} is unknown; allowed: full, small")
    c = base.get_config()
    base.pretrained(c, "models/Qwen2.5-1.5B-Instruct")
    base.set_task(
        c, "gsm8k", path="data/gsm8k", suffix=base.STEP_BY_STEP, boxed_only=False, last_number=False,
        on_bad_reference="error",  # or 'skip': rows whose answer cannot be graded by
    )  # fmt: skip
    c.steps = 232  # two epochs of 7,473 problems
    c.policy.compute_dtype = "bfloat16"
    c.policy.attention = "cudnn"
    c.policy.remat = "dots"
    c.sampling.prompts_per_step = 64
    c.sampling.rollouts_per_prompt = 8
    c.sampling.max_prompt_length = 384
    c.sampling.on_long_prompt = "skip"
    c.sampling.max_new_tokens = 1024
    c.objective.kl_coef = 0.001
    c.optimizer.learning_rate = 1e-6
    c.learner.minibatches = 2
    c.learner.microbatches = 8
    c.evaluation.every = 58
    c.evaluation.problems = 1319
    c.evaluation.batch_size = 128
    c.grading.workers = 8
    c.mesh.fsdp = 8
    if size == "small":
        base.small_model(c)
    return c
