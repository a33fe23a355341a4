"""DeepSeek-R1-Distill-Qwen-7B on MATH-7.5k: as r1_distill_qwen_1_5b_math.py, the setting of the paper's Table 4.

    python -m experiments.train --config=configs/r1_distill_qwen_7b_math.py:grpo --workdir=runs/math_7b_salt
    python -m experiments.train --config=configs/r1_distill_qwen_7b_math.py:dapo --workdir=runs/math_7b_dapo

Hardware: 8 GPUs of 80 GB. A device holds parameters, gradients, Adam's moments and the reference, 20 bytes a
parameter over fsdp (19 GB); completions are generated in waves whose caches stay within 24 GiB. Not run.
"""

from ml_collections import config_dict

from configs import base, r1_distill_qwen_1_5b_math


def get_config(form: str = "grpo") -> config_dict.ConfigDict:
    """``grpo``, ``dapo``, ``evaluate`` and ``small`` as in r1_distill_qwen_1_5b_math.py."""
    if form not in r1_distill_qwen_1_5b_math.FORMS:
        allowed = ", ".join(r1_distill_qwen_1_5b_math.FORMS)
        raise ValueError(f"configs/r1_distill_qwen_7b_math.py:{form} is unknown; allowed: {allowed}")
    c = r1_distill_qwen_1_5b_math.get_config(form)
    if form != "small":
        base.pretrained(c, "models/DeepSeek-R1-Distill-Qwen-7B")
        c.sampling.wave_mib = 24 * 1024
    return c
