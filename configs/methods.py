"""The published methods on two-digit sums, each as one form; with SALT on top unless it is switched off.

    python -m experiments.train --config=configs/methods.py:gspo --workdir=runs/gspo_salt
    python -m experiments.train --config=configs/methods.py:gspo --workdir=runs/gspo --config.salt.enabled=False

A form is what its paper names (docs/methods.md has formulas, sources and what is unconfirmed), at the size of
configs/arithmetic.py. Rates, batch sizes and lengths are that configuration's, not
the papers'. Rank-GRPO has no form here: its completions are lists. To compare runs from the same policy, start both
from one: ``--config.init_from=runs/…``.
"""

from typing import Any

from ml_collections import config_dict

from configs import arithmetic

# form -> what it sets, by section. Options of a method that are not named here keep the defaults of configs/base.py.
METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "grpo": {"objective": {"aggregation": "seq_mean_token_mean", "kl_coef": 0.001}},
    "dr_grpo": {"objective": {"estimator": "dr_grpo", "aggregation": "dr_grpo"}},
    "dapo": {
        "objective": {"clip_high": 0.28, "dual_clip": 10.0, "overlong_buffer": 1},
        "sampling": {"max_new_tokens": 5},  # one more than the longest answer takes: none is penalised for its length
        "collection": {"method": "dynamic"},
    },
    "gspo": {
        "objective": {
            "surrogate": "gspo", "clip_low": 3e-4, "clip_high": 4e-4, "aggregation": "seq_mean_token_mean",
        },
    },
    "gspo_token": {
        "objective": {
            "surrogate": "gspo_token", "clip_low": 3e-4, "clip_high": 4e-4, "aggregation": "seq_mean_token_mean",
        },
    },
    "rloo": {"objective": {"estimator": "rloo", "surrogate": "reinforce", "aggregation": "seq_mean_token_sum"}},
    "reinforce_pp": {
        "objective": {"estimator": "reinforce_pp", "kl_in": "reward", "kl_estimator": "k1", "kl_coef": 0.01},
    },
    "reinforce_pp_baseline": {"objective": {"estimator": "reinforce_pp_baseline"}},
    "cispo": {"objective": {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 0.28}},
    "dual_clip": {"objective": {"dual_clip": 3.0}},
    "tis": {"objective": {"importance": "token"}},
    "clip_cov": {"objective": {"surrogate": "clip_cov"}},
    "kl_cov": {"objective": {"surrogate": "kl_cov"}},
    "bnpo": {"objective": {"estimator": "bnpo", "clip_high": 0.28, "dual_clip": 10.0,
                           "aggregation": "seq_mean_token_sum"}},
    "gtpo": {
        "objective": {
            "estimator": "gtpo", "tokens": "conflict", "surrogate": "on_policy", "aggregation": "seq_mean_token_mean",
        },
    },
    "d3s": {"objective": {"filters": "d3s", "tokens": "d3s", "d3s_rollouts_first": 2, "d3s_rollouts_last": 4}},
    "lp_reg": {"objective": {"surrogate": "lp_reg"}},
    "lp_reg_paper": {"objective": {"surrogate": "lp_reg", "lp_reg_form": "paper"}},
    # The release injects at most 60 of 2,560 rows.
    "aepo": {"objective": {"dual_clip": 3.0}, "collection": {"method": "aepo", "max_injected": 12}},
    "hpt": {
        "objective": {
            "estimator": "dr_grpo", "surrogate": "on_policy", "aggregation": "token_sum_norm", "entropy_coef": 0.001,
        },
        "collection": {"method": "hpt"},
    },
    "otr": {"warm_start": {"objective": "otr"}},
    "rec_one_side": {"objective": {"estimator": "dr_grpo", "surrogate": "rec", "rec_mask": "one_side"}},
    "rec_one_side_is": {
        "objective": {
            "estimator": "dr_grpo", "surrogate": "rec", "rec_mask": "one_side", "rec_weight": "importance",
        },
    },
    "rec_two_side_is": {
        "objective": {
            "estimator": "dr_grpo", "surrogate": "rec", "rec_mask": "two_side", "rec_weight": "importance",
        },
    },
    "rec_ring": {"objective": {"estimator": "dr_grpo", "surrogate": "rec", "rec_mask": "ring"}},
    "rec_gspo": {
        "objective": {
            "estimator": "dr_grpo", "surrogate": "rec", "rec_mask": "gspo_one_side", "rec_weight": "gspo_importance",
            "clip_low": 3e-4, "clip_high": 4e-4, "aggregation": "seq_mean_token_mean",
        },
    },
    "red_weight": {"objective": {"estimator": "dr_grpo", "surrogate": "rec", "rec_weight": "advantage"}},
    "red_drop": {"objective": {"estimator": "dr_grpo", "surrogate": "rec", "filters": "red_drop"}},
    # The weight of KL is ours: the release leaves it to the user.
    "opmd": {"objective": {"estimator": "opmd", "surrogate": "opmd", "kl_estimator": "k2", "kl_coef": 0.01}},
    "opmd_rec": {"objective": {"estimator": "dr_grpo", "surrogate": "rec", "rec_regularizer": "k2"}},
    "asymre": {"objective": {"estimator": "asymre", "surrogate": "reinforce"}},
    "asymre_rec": {"objective": {"estimator": "dr_grpo", "surrogate": "rec", "rec_regularizer": "forward_kl"}},
    "darling": {
        "objective": {"estimator": "darling", "kl_coef": 0.001},
        "collection": {"clusters": "text"},
    },
    "copg": {"objective": {"estimator": "copg", "surrogate": "reinforce", "aggregation": "seq_mean_token_sum"}},
    "macro_sum": {"objective": {"surrogate": "macro_sum", "macro_length": 2}},
    "macro_mean": {"objective": {"surrogate": "macro_mean", "macro_length": 2}},
    "positive_only": {"objective": {"filters": "positive_only"}},
    "wapo": {"objective": {"estimator": "dr_grpo", "filters": "informative,winners", "aggregation": "dr_grpo"}},
    "pods": {"collection": {"method": "pods"}},
    "reinforce_ada": {
        "objective": {"estimator": "given_baseline", "clip_high": 0.28}, "collection": {"method": "reinforce_ada"},
    },
    "reinforce_ada_est": {
        "objective": {"estimator": "given_baseline", "clip_high": 0.28}, "collection": {"method": "reinforce_ada_est"},
    },
    "vade": {"collection": {"method": "vade"}},
    "gvm": {
        "objective": {
            "estimator": "raft", "surrogate": "reinforce", "aggregation": "seq_mean_token_sum", "kl_coef": 0.001,
        },
        "collection": {"method": "gvm"},
    },
}  # fmt: skip


def get_config(form: str = "grpo") -> config_dict.ConfigDict:
    """configs/arithmetic.py with one method of ``METHODS``; ``METHOD-small`` in its small form; ``small``: GRPO's."""
    method = form.removesuffix("-small") if form != "small" else "grpo"
    if method not in METHODS:
        raise ValueError(f"configs/methods.py:{form} is unknown; allowed: {', '.join(METHODS)}, each also with -small")
    c = arithmetic.get_config("small" if form.endswith("small") else "full")
    for section, values in METHODS[method].items():
        for key, value in values.items():
            c[section][key] = value
    return c
