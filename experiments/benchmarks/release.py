"""How the authors' PyTorch release gets its Gram matrix, emulated to be timed; needs torch (extra `bench`).

Its actor (repository Chang-pw/SALT, verl/trainer/gradient/proxy.py) keeps one graph of the logits of all m rollouts of
a micro-batch, asks it for one gradient per rollout with retain_graph=True, stacks dense (m, V·H) features, then
K = S Sᵀ. Two forms of that loop are in its code, and both are here:

    logits   autograd.grad(loss_i, logits), then rollout i's rows times its hidden states: what its actor calls
    weight   autograd.grad(loss_i, lm_head.weight): its `BackwardLastLayerProxy`, on the LM head alone

The emulation differs on purpose in three places: the cross entropy does not overwrite the saved logits (the release's
does, which makes its features wrong from the second rollout on), a rollout's loss is the mean over its tokens as in the
paper, and everything is float32.

This file imports neither JAX nor this project: `gram` runs it as a script in a process of its own, with any Python that
has torch, so that neither library's threads or memory disturb the other.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FORMS = ("logits", "weight")
NO_TORCH = "torch is not installed here: pip install 'torch==2.13.0' (extra bench), or name a Python that has it"
NO_TORCH_STATUS = 3


def gram(hidden: Any, weight: Any, targets: Any, mask: Any, form: str) -> Any:
    """K (m, m) as the release computes it: tensors hidden (m, T, H), weight (V, H), targets and mask (m, T)."""
    import torch

    weight = weight.detach().requires_grad_(True)
    logits = hidden @ weight.T
    flat = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    kept = mask.to(flat.dtype)
    losses = (flat.view_as(targets) * kept).sum(1) / kept.sum(1).clamp_min(1)
    features = []
    for i, loss in enumerate(losses):
        wanted = logits if form == "logits" else weight
        (gradient,) = torch.autograd.grad(loss, wanted, retain_graph=True)
        if form == "logits":
            own = mask[i]
            gradient = gradient[i][own].T @ hidden[i][own]
        features.append(gradient.reshape(-1))
    stacked = torch.stack(features)
    return stacked @ stacked.T


def peak_bytes() -> int:
    """The most memory this process has had so far.

    VmHWM where there is one: ru_maxrss of a child starts at its parent's peak on Linux, so it hides what is smaller.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main(arguments: Sequence[str] | None = None) -> int:
    """Answers each line of standard input with one timed run, as a line of JSON; writes K. Status 3 without torch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("inputs", help="npz with hidden (m, T, H), lm_head (H, V), targets (m, T), mask (m, T)")
    parser.add_argument("gram", help="npy to write K to")
    parser.add_argument("--form", choices=FORMS, default=FORMS[0])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    try:
        import numpy as np
        import torch
    except ImportError:
        print(NO_TORCH, file=sys.stderr)
        return NO_TORCH_STATUS
    torch.set_num_threads(options.threads)
    file = np.load(options.inputs)
    hidden, targets, mask = (torch.from_numpy(file[name]) for name in ("hidden", "targets", "mask"))
    targets, mask = targets.long(), mask.bool()
    weight = torch.from_numpy(np.ascontiguousarray(file["lm_head"].T))  # as torch stores it
    gram(hidden[:1], weight, targets[:1], mask[:1], options.form)  # threads and libraries start
    before = peak_bytes()
    for _ in sys.stdin:
        start = time.perf_counter()
        result = gram(hidden, weight, targets, mask, options.form)
        seconds = time.perf_counter() - start
        np.save(options.gram, result.numpy())
        told = {"seconds": seconds, "bytes": peak_bytes() - before, "torch": torch.__version__}
        print(json.dumps(told | {"threads": torch.get_num_threads()}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
