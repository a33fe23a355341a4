"""The house rules: floors, sizes, safety, the lock, the commands. The rules themselves are in tests/house.py."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import ml_collections
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from salt_jax import _moved
from tests import house
from tests.house import REPOSITORY

CODE = ("salt_jax", "experiments", "configs")
LIMIT = 400
SOURCES = house.read_sources(*CODE)


def _config_files() -> list[Path]:
    """The runs' configs; configs/base.py is what they share, and no run."""
    paths = [path for path in house.python_files("configs") if path.name != "base.py"]
    return [path for path in paths if "def get_config(" in path.read_text()]


# --- sizes ---


def test_no_file_outgrows_its_room():
    lengths = {path.name: len(path.read_text().splitlines()) for path in house.python_files(*CODE)}
    assert {name: length for name, length in lengths.items() if length > LIMIT} == {}


# --- imports ---


def test_imports_go_down():
    assert house.import_complaints(SOURCES) == []


@pytest.mark.parametrize(
    ("sources", "complaint"),
    [
        ({"salt_jax.tasks.task": "from salt_jax.policy import sampler"}, "(floor 3) imports salt_jax.policy"),
        ({"salt_jax.objective.losses": "from salt_jax import learner"}, "(floor 4) imports salt_jax.learner"),
        ({"salt_jax.rollout": "def f():\n    import salt_jax.evaluation.scores"}, "imports salt_jax.evaluation.scores"),
        ({"salt_jax.learner.step": "from experiments import train"}, "(floor 7) imports experiments"),
        ({"salt_jax.objective.kl": "from salt_jax.tasks.task import Task"}, "objective knows nothing of tasks"),
        ({"salt_jax.salt": "from salt_jax.policy import logprobs"}, "salt knows nothing of policy"),
        ({"salt_jax.salt.variants": "from salt_jax.rollout import RolloutBatch"}, "salt knows nothing of rollout"),
        ({"salt_jax.geometry.gram": "from ..tasks import task"}, "geometry knows nothing of tasks"),
        ({"salt_jax.geometry": "from .. import tasks", "salt_jax.geometry.a": ""}, "geometry knows nothing of tasks"),
        ({"configs.arithmetic": "from salt_jax import salt"}, "configs are data only"),
        ({"salt_jax.run.loop": "from configs import base"}, "salt_jax.run.loop imports configs"),
        ({"salt_jax.evaluation.evaluate": "from tests import reference"}, "salt_jax.evaluation.evaluate imports tests"),
        ({"salt_jax.cellar": ""}, "cellar has no floor"),
        (
            {"salt_jax.tasks": "from salt_jax import rollout", "salt_jax.rollout": "from salt_jax.tasks import task"},
            "circle: rollout → tasks → rollout",
        ),
        (
            {"salt_jax.policy": "", "salt_jax.policy.a": "from .b import f", "salt_jax.policy.b": "from . import a"},
            "circle: salt_jax.policy.a → salt_jax.policy.b → salt_jax.policy.a",
        ),
    ],
)
def test_a_wrong_import_is_caught(sources, complaint):
    assert any(complaint in line for line in house.import_complaints(sources)), house.import_complaints(sources)


def test_right_imports_are_not_caught():
    sources = {
        "salt_jax.vocab": "import jax.numpy as jnp\n",
        "salt_jax.geometry": "from salt_jax.geometry.gram import gram\nfrom salt_jax.geometry import spectrum",
        "salt_jax.geometry.gram": "from salt_jax.vocab import stream",
        "salt_jax.geometry.spectrum": "from . import gram",
        "salt_jax.salt": "from salt_jax import geometry",
        "salt_jax.learner.step": "from salt_jax import salt, geometry\nfrom salt_jax.objective import losses",
        "experiments.train": "from salt_jax.run import loop\nfrom configs import arithmetic",
        "configs.arithmetic": "import ml_collections\nfrom configs import base",
    }
    assert house.import_complaints(sources) == []


def test_old_names_lead_to_the_new_places_and_say_so():
    for old, new in _moved.MOVED.items():
        sys.modules.pop(old, None)
        with pytest.warns(DeprecationWarning, match=f"^{old} is {new} now; the old name goes with salt-jax 0.3$"):
            alias = importlib.import_module(old)
        real = importlib.import_module(new)
        assert vars(real).keys() <= set(dir(alias))
        assert all(getattr(alias, name) is value for name, value in vars(real).items() if not name.startswith("__"))
    assert importlib.util.find_spec("salt_jax.policy.hf").loader.get_code("salt_jax.policy.hf")  # python -m
    with pytest.raises(ModuleNotFoundError, match="salt_jax.policy.cellar"):
        importlib.import_module("salt_jax.policy.cellar")


def test_no_tensorflow_and_no_torch_in_the_text():
    assert house.heavy_complaints(SOURCES) == []
    assert house.heavy_complaints({"salt_jax.tasks.task": "def f():\n    import tensorflow as tf"})
    assert house.heavy_complaints({"experiments.benchmarks.gram": "import torch"})
    assert house.heavy_complaints({"experiments.benchmarks.release": "import tensorflow"})


def _python(code: str, env: dict[str, str]) -> str:
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_no_tensorflow_and_no_torch_at_run_time(subprocess_env):
    """Every room is imported in a fresh process: what an extra brings is imported inside functions only."""
    code = """
import importlib, pkgutil, sys
sys.modules["torch"] = None  # importing it fails: tensorboardX tries to, wherever it is installed
import salt_jax
assert "jax" not in sys.modules, "import salt_jax alone must stay light"
for module in pkgutil.walk_packages(salt_jax.__path__, "salt_jax."):
    importlib.import_module(module.name)
print([name for name in ("tensorflow", "torch", "keras", "transformers") if sys.modules.get(name)])
"""
    assert _python(code, subprocess_env).splitlines()[-1] == "[]"


# --- text ---


def test_nothing_unpickles_or_evaluates_text():
    assert house.unsafe_complaints(SOURCES) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from jax._src import core",
        "eval('1')",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(command, shell=True)",
        "os.system('ls')",
        "from os import system as run\nrun('ls')",
        "import builtins as b\nb.exec('1')",
        "from subprocess import getoutput\ngetoutput('ls')",
        "yaml.load(text)",
        "import torch.load",
        "def f(path):\n    import joblib",
        "archive.extractall(folder)",
        "shutil.unpack_archive(path)",
        "tempfile.mktemp()",
        "AutoTokenizer.from_pretrained(folder, local_files_only=True)",
        "AutoTokenizer.from_pretrained(folder, local_files_only=offline, trust_remote_code=False)",
        "load(folder, trust_remote_code=True)",
        "load(folder, trust_remote_code=chosen)",
        "importlib.import_module(row['reward'])",
        "from importlib import import_module\nimport_module(name)",
        "runpy.run_path(path)",
        "import urllib.request",
        "from http import client",
        "def f():\n    import requests",
        "import socket",
        "from huggingface_hub import snapshot_download",
    ],
)
def test_unsafe_text_is_caught(text):
    sources = {"salt_jax.tasks.task": text}
    assert len(house.unsafe_complaints(sources) + house.heavy_complaints(sources)) == 1


def test_what_is_allowed_in_one_place_is_not_in_another():
    for module, text in (
        ("salt_jax.run.lock", "import socket"), ("experiments.cli", "runpy.run_path(path)"),
        ("salt_jax.graders.verdict", "importlib.import_module(name)"), ("salt_jax.graders.program", "exec(text)"),
    ):
        assert house.unsafe_complaints({module: text}) == []
        assert len(house.unsafe_complaints({"salt_jax.salt": text})) == 1


def test_safe_text_is_not_caught():
    text = "jax.eval_shape(f)\nmodel.eval()\njax.jit(f).lower(x).compile()\nnp.load(path, allow_pickle=False)\n"
    text += "AutoTokenizer.from_pretrained(f, local_files_only=True, trust_remote_code=False)\n"
    text += "import zipfile\nre.compile(x)"
    assert house.unsafe_complaints({"salt_jax.tasks.task": text}) == []


# --- configs ---


@pytest.mark.parametrize("path", _config_files(), ids=lambda path: path.stem)
def test_a_config_says_its_command_and_has_a_small_form(path):
    module = importlib.import_module(f"configs.{path.stem}")
    assert module.__doc__, "a config's docstring says the command and the expected result"
    assert f"configs/{path.name}" in module.__doc__ or "make " in module.__doc__
    parameters = list(inspect.signature(module.get_config).parameters.values())
    assert parameters, "get_config takes an argument: --config=configs/NAME.py:small"
    for arguments in ((), ("small",)) if parameters[0].default is not parameters[0].empty else (("small",),):
        config = module.get_config(*arguments)
        assert isinstance(config, ml_collections.ConfigDict)
        assert config.is_locked, "a locked ConfigDict refuses unknown keys"


# --- packaging ---


NOT_LOCKED = {"bench"}  # torch, for one benchmark: thousands of MiB that no run needs; pyproject.toml pins it


def _pins() -> list[Requirement]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def _pinned(python: str, platform: str = "linux") -> dict[str, str]:
    """Name → version for one Python and platform: pip's view of the lock."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": platform}
    environment |= {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    pins: dict[str, str] = {}
    for pin in _pins():
        if pin.marker is None or pin.marker.evaluate(environment):
            assert canonicalize_name(pin.name) not in pins, f"{pin.name} is pinned twice on Python {python}"
            (specifier,) = pin.specifier
            assert specifier.operator == "=="
            pins[canonicalize_name(pin.name)] = specifier.version
    return pins


def _project() -> dict:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def test_the_lock_has_versions_and_markers_only():
    text = (REPOSITORY / "constraints.txt").read_text()
    assert not re.search(r"://|file:|--|\[|\\|^-", text, flags=re.MULTILINE)
    assert all(pin.url is None and not pin.extras for pin in _pins())


@pytest.mark.parametrize("platform", ["linux", "darwin"])
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_lock_meets_every_requirement(python, platform):
    pins = _pinned(python, platform)
    extras = [lines for name, lines in _project()["optional-dependencies"].items() if name not in NOT_LOCKED]
    for requirement in map(Requirement, [*_project()["dependencies"], *(line for extra in extras for line in extra)]):
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} against {version}: run `make lock`"
    assert not {"torch", "tensorflow", "tensorflow-cpu", "tf-nightly", "keras"} & set(pins)


def test_the_installed_versions_are_the_locks():
    """What this suite runs with is what the lock says, in an environment that make made."""
    if not (Path(sys.prefix) / ".installed").exists():
        pytest.skip("this environment was not made by make: its versions are its owner's choice")
    pins = _pinned(f"{sys.version_info.major}.{sys.version_info.minor}", sys.platform)
    names = [canonicalize_name(Requirement(line).name) for line in _project()["dependencies"]]
    assert {name: metadata.version(name) for name in names} == {name: pins[name] for name in names}


# --- commands ---


@pytest.mark.parametrize(("status", "targets"), [(0, ["test", "parity"]), (3, ["test"])])
def test_ci_runs_the_tests_as_on_a_bare_machine(status, targets, tmp_path):
    make = tmp_path / "make"
    make.write_text(f'#!/bin/sh\necho "$1" "$HOME" $(ls -A "$HOME") $(env | cut -d= -f1)\nexit {status}\n')
    make.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PIP_NO_INDEX": "1"}
    run = subprocess.run([REPOSITORY / ".ci" / "run"], env=env, capture_output=True, text=True)
    lines = [line.split() for line in run.stdout.splitlines()]
    assert (run.returncode, [line[0] for line in lines]) == (status, targets)
    _, home, *rest = lines[0]  # nothing in the home, and no variable that a shell does not set itself
    assert set(rest) - {"PWD", "OLDPWD", "SHLVL", "_"} == {"HOME", "PATH"}
    assert home != os.environ.get("HOME")
    assert not Path(home).exists()


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_what_a_document_names_exists(document):
    text = (REPOSITORY / document).read_text()
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"^ *make ([a-z]+)|`make ([a-z]+)", text, flags=re.MULTILINE):
        assert f"\n{''.join(target)}:" in makefile, f"{document} names make {''.join(target)}"
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (REPOSITORY / link).exists(), f"{document} links to {link}"


def _make(*arguments: str) -> subprocess.CompletedProcess:
    callers = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHON", "VENV")
    env = {key: value for key, value in os.environ.items() if key not in callers}
    command = ["make", *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


def test_a_python_that_will_not_do_is_one_clear_line(tmp_path):
    venv = tmp_path / "venv"
    run = _make("setup", f"VENV={venv}", "PYTHON=false")
    assert run.returncode != 0
    assert run.stderr.splitlines()[0] == "error: salt-jax needs Python 3.11 or newer, and PYTHON=false is not that"
    assert not venv.exists()
