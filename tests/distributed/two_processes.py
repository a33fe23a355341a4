"""One of the two processes of test_hosts.py: python -m tests.distributed.two_processes OUT METHOD…; writes OUT.<n>."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from salt_jax.collect import Engine, make_collection
from salt_jax.collect.generation import grade_shares
from salt_jax.distributed import hosts
from salt_jax.distributed.sharding import batch_sharding, make_mesh, replicated, tree_shardings
from salt_jax.graders import GraderError, Grades, Verdict
from salt_jax.graders.verdict import gather
from salt_jax.spec import ConfigError
from tests.collect.collect_setup import engine, state_at


def refused(call: Any) -> str:
    """The message that a call is refused with; '' where it is not."""
    try:
        call()
    except (ConfigError, GraderError) as error:
        return str(error)
    return ""


def on_second(message: str) -> str:
    """A check that only the second process fails."""
    if hosts.index() == 1:
        raise ConfigError(message)
    return "passed"


def graded(texts: Any, references: Any) -> Grades:
    """What is not the reference is missing where it is empty, else 0; the first process gives no components."""
    there = (float(hosts.index()), 0.5) if hosts.index() else None
    return gather([Verdict(float(t == r), t, there) if t else "lost" for t, r in zip(texts, references, strict=True)])


def broken(texts: Any, references: Any) -> Grades:
    """A grader that the second process does not have."""
    if hosts.index() == 1:
        raise GraderError("no such package")
    return graded(texts, references)


def rollouts(method: str) -> dict[str, Any]:
    """One step's rollouts on a mesh of eight devices, whole; how many completions this process graded."""
    made = engine({"collection.method": method, "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2})
    here: list[str] = []

    def grade(texts: Any, references: Any) -> Grades:
        here.extend(texts)
        return made.grade(texts, references)

    state = state_at()
    state = hosts.put(state, tree_shardings(state, made.mesh))
    fields = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    collected = make_collection(Engine(**fields | {"grade": grade}))(state, 1)
    batch = hosts.fetch(collected.rollouts)
    names = ("tokens", "completion_mask", "rewards", "rewarded", "valid")
    return {name: getattr(batch, name).tolist() for name in names} | {
        "log_probs": batch.sampler_log_probs.tolist(), "graded": len(here), "metrics": dict(collected.metrics),
    }  # fmt: skip


def found() -> dict[str, Any]:
    """Everything that test_hosts.py looks at."""
    mesh = make_mesh(2, 2, 2)
    rows = np.arange(24, dtype=np.float32).reshape(8, 3)
    batch = hosts.put(rows, batch_sharding(mesh))
    doubled = jax.jit(lambda x: 2 * x)(batch)
    key = hosts.put({"key": jax.random.key(3), "none": None, "number": 7}, replicated(mesh))
    weights = {"embedding": np.arange(32.0).reshape(8, 4), "count": jnp.int32(5)}
    placed = hosts.put(weights, tree_shardings(weights, mesh))
    mine = hosts.local_rows(mesh, 8)
    texts, references = ["a", "b", "", "d", "e", "", "g", "h"], list("abcdefgx")
    share = [texts[i] for i in mine], [references[i] for i in mine]
    grades, all_texts = grade_shares(graded, mine, *share, 8)
    lone = jax.sharding.Mesh(mesh.devices.reshape(1, 1, 8), mesh.axis_names)
    return {
        "who": [hosts.index(), hosts.count(), hosts.lead(), jax.device_count()],
        "fetched": hosts.fetch({"x": doubled, "y": rows})["x"].tolist(),
        "passed_on": hosts.put(doubled, batch_sharding(mesh)) is doubled,
        "key": jax.random.key_data(key["key"]).tolist(), "number": int(key["number"]),
        "weights": hosts.fetch(placed)["embedding"].tolist(), "axes": list(placed["embedding"].sharding.spec),
        "dtype": str(placed["embedding"].dtype),
        "rows": mine.tolist(), "local": hosts.fetch_local((doubled, doubled[:, 0]))[0].tolist(),
        "gathered": hosts.gather({"text": "é\ud800" * 3000 * hosts.index(), "nan": float("nan")}),
        "largest": [hosts.largest(15 * hosts.index()), hosts.largest(0)],
        "first": hosts.first_to_all({"from": hosts.index()}),
        "first_long": hosts.first_to_all("é\ud800" * 3000 if hosts.lead() else object()) == "é\ud800" * 3000,
        "sigterm": caught(signal.SIGTERM),
        "agreed": hosts.agree(lambda: hosts.index() + 10),
        "one_fails": refused(lambda: hosts.agree(lambda: on_second("no such file"))),
        "grades": [grades.rewards.tolist(), grades.rewarded.tolist(), list(grades.answers), grades.errors.count],
        "components": grades.components.tolist(), "first_error": grades.errors.first, "texts": all_texts,
        "broken": refused(lambda: grade_shares(broken, mine, *share, 8)),
        "mesh": [refused(lambda m=m: hosts.check_mesh(m)) for m in (mesh, make_mesh(4), lone)],
        "explained": hosts.explain(RuntimeError("UNKNOWN: Gloo AllGather failed: Connection closed\nby peer")),
        "rollouts": {method: rollouts(method) for method in sys.argv[2:]},
        "not_explained": hosts.explain(RuntimeError("shapes do not fit")),
    }  # fmt: skip


def caught(number: int) -> bool:
    """Whether anything in this process, C++ included, handles a signal."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("SigCgt:")]
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


if __name__ == "__main__":
    said = hosts.initialize_from_environment()
    result = found() | {"said": said}
    Path(f"{sys.argv[1]}.{hosts.index()}").write_text(json.dumps(result))
