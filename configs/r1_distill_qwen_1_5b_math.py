"""DeepSeek-R1-Distill-Qwen-1.5B on MATH-7.5k: the setting of the paper's Table 4 (arXiv 2606.05800), GRPO and DAPO.

    pip install -e '.[hf,math]'
    python -m experiments.train --config=configs/r1_distill_qwen_1_5b_math.py:grpo --workdir=runs/math_salt
    python -m experiments.train --config=configs/r1_distill_qwen_1_5b_math.py:grpo --workdir=runs/math_grpo \
        --config.salt.enabled=False
    python -m experiments.evaluate --config=configs/r1_distill_qwen_1_5b_math.py:evaluate --run=runs/math_salt \
        --workdir=runs/math_salt_evaluated

It reads models/DeepSeek-R1-Distill-Qwen-1.5B (config.json, safetensors, tokenizer) and data/*.jsonl, whose columns
salt_jax/tasks/{math,aime,gpqa,gsm8k}.py describe; ``--config.model.path`` and ``--config.task.…`` name others.

Hardware: 8 GPUs of 80 GB. A device holds parameters, gradients, Adam's moments and the reference, 20 bytes a
parameter over fsdp (4.4 GB), and the caches of 64 rollouts of 9,216 tokens (15 GB). Not run; the paper reports, from
its own code, mean accuracy over five benchmarks 51.2 for GRPO and 53.7 for GRPO + SALT. The DAPO form has its
clipping, its token mean, no KL, and its group filter with refills; ``objective.overlong_buffer`` is 0, without its
shaping of long completions.
"""

from ml_collections import config_dict

from configs import base

FORMS = ("grpo", "dapo", "evaluate", "small")


def get_config(form: str = "grpo") -> config_dict.ConfigDict:
    """``grpo`` and ``dapo`` train, ``evaluate`` has the five benchmarks; ``small`` is two steps with SmolLM2."""
    if form not in FORMS:
        raise ValueError(f"configs/r1_distill_qwen_1_5b_math.py:{form} is unknown; allowed: {', '.join(FORMS)}")
    c = base.get_config()
    base.pretrained(c, "models/DeepSeek-R1-Distill-Qwen-1.5B")
    train_on_math(c)
    if form == "dapo":
        c.objective.clip_high = 0.28
        c.objective.kl_coef = 0.0
        c.collection.method = "dynamic"
    if form == "evaluate":
        evaluate_five(c)
    if form == "small":
        base.small_model(c)
    return c


def train_on_math(c: config_dict.ConfigDict) -> None:
    """The paper's Table 4."""
    base.set_task(
        c, "math", train="data/math_train.jsonl", test="data/math_500.jsonl", suffix=base.STEP_BY_STEP,
        boxed_only=False, on_bad_reference="error",  # or 'skip': rows whose answer cannot be graded by
    )  # fmt: skip
    c.steps = 234  # two epochs of 7,500 problems
    c.policy.compute_dtype = "bfloat16"
    c.policy.attention = "cudnn"
    c.policy.remat = "full"
    c.sampling.prompts_per_step = 64
    c.sampling.rollouts_per_prompt = 8
    c.sampling.max_prompt_length = 1024
    c.sampling.on_long_prompt = "skip"
    c.sampling.max_new_tokens = 8192
    c.sampling.temperature = 0.6
    c.objective.kl_coef = 0.001
    c.optimizer.learning_rate = 1e-6
    c.learner.minibatches = 2  # of 32 prompts: m = 256
    c.learner.microbatches = 32
    c.evaluation.every = 39
    c.evaluation.problems = 500
    c.evaluation.batch_size = 64
    c.evaluation.temperature = 0.6
    c.grading.workers = 8
    c.checkpoint.every = 20
    c.mesh.fsdp = 8


def evaluate_five(c: config_dict.ConfigDict) -> None:
    """AIME24, AIME25, GSM8K, MATH-500 and GPQA-Diamond, eight samples a problem."""
    math = {"suffix": base.STEP_BY_STEP}
    base.set_task(
        c, "mixture", seed=0, on_bad_reference="error",
        parts={
            "aime24": {"task": "aime", "test": "data/aime_2024.jsonl", **math},
            "aime25": {"task": "aime", "test": "data/aime_2025.jsonl", **math},
            "gsm8k": {"task": "gsm8k", "path": "data/gsm8k", **math},
            "math500": {"task": "math", "test": "data/math_500.jsonl", **math},
            "gpqa": {"task": "gpqa", "test": "data/gpqa_diamond.jsonl"},
        },
    )  # fmt: skip
    c.evaluation.problems = 100_000  # all there are
    c.evaluation.samples = 8
