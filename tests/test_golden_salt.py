"""The authors' published algorithm, 80 cases; tolerances are those of tests/golden/README.md."""

from __future__ import annotations

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from salt_jax import salt
from tests.reference import salt as reference


@functools.cache
def load(folder):
    with np.load(folder / "salt_reweight.npz") as data:
        return json.loads((folder / "salt_reweight.json").read_text()), dict(data)


def test_there_are_80_cases(golden):
    rows, _ = load(golden)
    assert [row["i"] for row in rows] == list(range(80))


PADDED = 48
"""All cases at one shape, padded with invalid rollouts: one compilation for each variant."""


def padded(gram: np.ndarray, advantages: np.ndarray, config: salt.SaltConfig) -> salt.SaltOutput:
    m = len(advantages)
    gram = np.pad(gram, (0, PADDED - m), constant_values=np.nan)
    advantages = np.pad(advantages, (0, PADDED - m), constant_values=np.nan)
    valid = np.arange(PADDED) < m
    out = salt.reweight(jnp.asarray(gram), jnp.asarray(advantages), config, valid=valid)
    channels = {name: np.asarray(getattr(out, name))[:m] for name in ("advantages", "shared", "residual")}
    return out._replace(**channels)


@pytest.mark.parametrize("first", range(0, 80, 8))
def test_golden_reweight(golden, first):
    rows, data = load(golden)
    for row in rows[first : first + 8]:
        check(
            row,
            {name: data[f"{name}_{row['i']}"] for name in ("features", "advantages", "main", "exp", "final")},
        )


def check(row: dict, case: dict) -> None:
    fields = {
        "rho": row["rho"],
        "k_min": row["k_min"],
        "k_max": max(min(row["k_max"], row["B"] - 1), row["k_min"]),
        "alpha_min": row["alpha_min"],
        "alpha_max": row["alpha_max"],
        "rescale": row["normalize_final"],
        "variant": "salt" if row["use_relu_exploration"] else "signed",
    }
    out = padded(case["features"] @ case["features"].T, case["advantages"], salt.SaltConfig(**fields))
    where = f"case {row['i']}"
    assert bool(out.ok), where
    assert int(out.k) == row["k"], where
    for name in ("participation_ratio", "n_eff", "alpha"):
        np.testing.assert_allclose(getattr(out, name), row[name], rtol=0, atol=1e-4, err_msg=where)
    slack = 1.5 * row["max_abs_dev_float64"] if row["iterative"] else 0.0
    np.testing.assert_allclose(out.advantages, case["final"], rtol=0, atol=2e-5 + slack, err_msg=where)
    # `max_abs_dev_float64` is the error of `final`, not of the two channels (theirs can be larger and cancel):
    # the channels are compared with the release where it is exact, and with float64 everywhere.
    if not row["iterative"]:
        np.testing.assert_allclose(out.shared, case["main"], rtol=0, atol=2e-5, err_msg=where)
        np.testing.assert_allclose(out.residual, case["exp"], rtol=0, atol=2e-5, err_msg=where)
    expected = reference.reweight(case["features"], case["advantages"], **fields)
    rounding = np.finfo(np.float32).eps * expected["condition"] * np.linalg.norm(case["advantages"])
    for name in ("advantages", "shared", "residual"):
        got = getattr(out, name)
        np.testing.assert_allclose(
            got, expected[name], rtol=0, atol=2 * rounding + 1e-6, err_msg=f"{where} {name}"
        )
