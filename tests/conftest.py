"""What every test runs under: 8 host devices, no rank promotion, warnings as errors (pyproject.toml), fixed examples.

pytest reads this file before it imports any test or salt_jax itself, so that the flags below precede JAX's backends.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
HOST_DEVICES = 8
_DEVICE_FLAG = "--xla_force_host_platform_device_count"

_callers_xla_flags = os.environ.get("XLA_FLAGS", "")
if _DEVICE_FLAG not in _callers_xla_flags:
    if "jax" in sys.modules:
        raise RuntimeError("tests/conftest.py must come before jax is imported: run pytest from the repository's root")
    # Programs of tests run for a millisecond: what counts is the time to compile them. The step, the features and the
    # sampler also run as users compile them (``training_setup.compiled_as_users_do``).
    quick = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
    if metadata.version("jaxlib") < "0.11":  # a flag of these versions alone; an unknown one ends the process
        quick.append("--xla_cpu_use_fusion_emitters=false")  # they compile in a third of the time
    quick = [flag for flag in quick if flag.partition("=")[0] not in _callers_xla_flags]
    os.environ["XLA_FLAGS"] = " ".join([_callers_xla_flags, *quick, f"{_DEVICE_FLAG}={HOST_DEVICES}"]).strip()
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # what a worker or a child has compiled, no other compiles again
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="salt-jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

gc.set_threshold(100_000, 50, 100)  # tracing makes millions of objects, and hardly a circle
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("salt", derandomize=True, deadline=None, max_examples=25, database=None)
hypothesis.settings.load_profile("salt")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `mesh` need several devices, which another JAX_PLATFORMS may not have."""
    meshed = [item for item in items if item.get_closest_marker("mesh")]
    if meshed and jax.device_count() < HOST_DEVICES:
        reason = f"needs {HOST_DEVICES} devices, {jax.default_backend()} has {jax.device_count()}"
        for item in meshed:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of the authors' outputs."""
    return REPOSITORY / "tests" / "golden"


@pytest.fixture
def no_transfers() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """`with no_transfers():` an implicit copy from host to device is an error; jax.device_put is allowed."""
    return lambda: jax.transfer_guard("disallow")


@pytest.fixture(scope="module", autouse=True)
def forgotten_programs() -> Iterator[None]:
    """Compiled programs go once they fill memory: a worker that keeps thousands of them slows down."""
    yield
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if resident > 2 << 30:
        jax.clear_caches()


@pytest.fixture(scope="session")
def subprocess_env() -> dict[str, str]:
    """The environment for a process that a test starts from the repository's root: one device, as users have.

    Shared by all tests: extend it with `subprocess_env | {...}`.
    """
    env = dict(os.environ)
    flags = [flag for flag in env["XLA_FLAGS"].split() if not flag.startswith(_DEVICE_FLAG)]
    env["XLA_FLAGS"] = " ".join(flags)
    # The Makefile's own variables, and what pytest and pytest-xdist tell their workers, are not for children.
    return {key: value for key, value in env.items() if not key.startswith(("MAKE", "MFLAGS", "PYTEST_"))}
