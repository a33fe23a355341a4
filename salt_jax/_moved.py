"""Old names of modules that moved: they lead to the new ones until 0.3, with a warning that names the new place."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

# Package they were in: package they are in: modules, as old=new where the name itself is another.
_MOVED = {
    "": {
        "distributed": "layout", "evaluation": "evaluate evaluate_problems=problems evaluate_scores=scores",
        "vocab": "vocab_backward=backward vocab_chunks=chunks vocab_kept=kept vocab_tempered=tempered",
        "salt": "salt_variants=variants", "collect": "allocation", "run": "training",
    },
    "allocation.": {"collect.allocation": "gvm reinforce_ada rounding vade"},
    "policy.": {
        "models": "gguf hf hf_config hf_export hf_tensors integrity policy_folder pretrained run_steps "
        "safetensors_folder"
    },
    "training.": {
        "distributed": "sharding hosts hosts_start",
        "learner": "harvest keys reweighting settings state step step_metrics warm_start weighing",
        "": "collect", "collect": "generation",
        "run": "checkpoint code_fingerprints config dumps events fingerprints guards identity judging limits lock loop "
        "metrics phase preemption provenance quiet session setup workdir",
    },
    "training.collect.": {
        "collect": "ada ada_est aepo checks collection dynamic extras groups gvm hpt plain pods turn vade"
    },
}  # fmt: skip


def _names() -> dict[str, str]:
    found = {}
    for old_package, places in _MOVED.items():
        for package, modules in places.items():
            for module in modules.split():
                old, _, new = module.partition("=")
                place = f"salt_jax.{package}." if package else "salt_jax."
                found[f"salt_jax.{old_package}{old}"] = f"{place}{new or old}"
    found["salt_jax.training"] = "salt_jax.run"  # the package itself, of whose modules most are there
    return found


MOVED = _names()
"""Old dotted name -> new one."""


class _Alias(InspectLoader):
    """Gives the new module's names under the old one."""

    def __init__(self, new: str) -> None:
        self.new = new

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty module that takes what it is asked for from the new one."""
        real = importlib.import_module(self.new)
        alias = ModuleType(spec.name, real.__doc__)
        alias.__getattr__ = lambda name: getattr(real, name)  # type: ignore[method-assign]
        alias.__dir__ = lambda: dir(real)  # type: ignore[method-assign]
        return alias

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to do."""

    def get_code(self, fullname: str) -> CodeType | None:
        """For ``python -m``: the new module's code."""
        spec = importlib.util.find_spec(self.new)
        assert spec is not None
        assert isinstance(spec.loader, InspectLoader)
        return spec.loader.get_code(self.new)

    def get_source(self, fullname: str) -> str | None:
        """None: the new module has its own."""
        return None


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        new = MOVED.get(fullname)
        if new is None:
            return None
        text = f"{fullname} is {new} now; the old name goes with salt-jax 0.3"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        package = any(name.startswith(fullname + ".") for name in MOVED)
        return ModuleSpec(fullname, _Alias(new), is_package=package)


def install() -> None:
    """Lets the old names be imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
