"""The rules that tests/test_house.py holds the code to, each a function from source text to a list of complaints."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

# The rooms from below: an import goes to a lower floor, or stays on its floor without a circle.
FLOORS = {
    room: floor
    for floor, rooms in enumerate([
        "rollout spec products distributed _moved", "graders", "tasks vocab", "geometry objective",
        "salt policy selection", "models evaluation", "learner", "collect", "run", "experiments",
    ], start=1)
    for room in rooms.split()
}  # fmt: skip

# What the floors alone would allow: rooms that take arrays and return arrays.
FORBIDDEN = {
    "geometry": {"tasks", "graders", "rollout"},
    "salt": {"tasks", "graders", "rollout", "policy"},
    "objective": {"tasks", "graders"},
}
HEAVY = ("tensorflow", "torch", "keras")
# The one file that times torch itself, as a script of its own (extra `bench`); nothing may import torch through it.
HEAVY_ALLOWED = {"experiments.benchmarks.release": "torch"}
UNSAFE_IMPORTS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "jsonpickle"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
# Nothing is ever downloaded: models and data are folders that are there.
NETWORK = {
    "aiohttp", "ftplib", "http", "httpx", "huggingface_hub", "paramiko", "requests", "smtplib", "socket",
    "socketserver", "telnetlib", "urllib", "urllib3", "websockets", "xmlrpc",
}  # fmt: skip
# The name of this machine in a lock file; whether the coordinator of a run on many hosts answers.
NETWORK_ALLOWED = {"salt_jax.run.lock": {"socket"}, "salt_jax.distributed.hosts_start": {"socket"}}
# The one file that executes text, in a confined process of its own: programs that are graded.
UNSAFE_ALLOWED = {"salt_jax.graders.program": {"exec", "compile"}}
UNSAFE_ATTRIBUTES = {
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "yaml.load", "yaml.load_all",
    "yaml.full_load", "yaml.unsafe_load", "torch.load", "pandas.read_pickle", "tempfile.mktemp",
    "shutil.unpack_archive",
} | {f"builtins.{name}" for name in UNSAFE_CALLS}  # fmt: skip
UNSAFE_METHODS = {"extractall"}  # of archives: a member's name can lead anywhere
UNSAFE_ARGUMENTS = {"allow_pickle", "shell", "trust_remote_code"}
NEEDED_ARGUMENTS = {"from_pretrained": {"local_files_only": True, "trust_remote_code": False}}
# What makes code of a text: the import path of a grader, the verifier of a mixture, the file of --config, old names.
BY_NAME = {"importlib.import_module", "runpy.run_path", "runpy.run_module"}
BY_NAME_ALLOWED = {"salt_jax._moved", "salt_jax.graders.verdict", "salt_jax.tasks.mixture", "experiments.cli"}

Sources = Mapping[str, str]  # dotted module name → text; a package goes by its own name


def python_files(*folders: str) -> list[Path]:
    """The tracked rooms' files, in a fixed order."""
    return sorted(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))


def read_sources(*folders: str) -> dict[str, str]:
    """Every module under the folders, by dotted name."""
    sources = {}
    for path in python_files(*folders):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return sources


@functools.cache
def parsed(text: str) -> ast.Module:
    """The syntax tree of a text, for several rules at once."""
    return ast.parse(text)


def imports(module: str, sources: Sources) -> Iterator[str]:
    """Dotted names of all that a module imports, anywhere in it; a submodule, not its package, where both fit."""
    is_package = any(name.startswith(module + ".") for name in sources)
    for node in ast.walk(parsed(sources[module])):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                kept = parts[: len(parts) - node.level + is_package]
                base = ".".join([*kept, base] if base else kept)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                inside = base == "salt_jax" or full in sources
                yield full if inside else base


def room(module: str) -> str | None:
    """The room of a module of this project: salt_jax.policy.sampler is in policy; None for what is in no room."""
    first, _, rest = module.partition(".")
    if first == "experiments":
        return first
    if first != "salt_jax" or not rest:
        return None
    return rest.partition(".")[0]


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Every circle that a depth-first walk closes, as the names along it."""
    found, done = [], set()

    def walk(node: str, path: list[str]) -> None:
        if node in path:
            found.append([*path[path.index(node) :], node])
        elif node not in done:
            for target in sorted(edges.get(node, ())):
                walk(target, [*path, node])
            done.add(node)

    for start in sorted(edges):
        walk(start, [])
    return found


def import_complaints(sources: Sources) -> list[str]:
    """Where imports go up, go where a room must not look, or run in a circle (between rooms, or between modules)."""
    complaints = []
    room_edges: dict[str, set[str]] = {}
    module_edges: dict[str, set[str]] = {}
    for module in sources:
        here = room(module)
        if here is not None and here not in FLOORS:
            complaints.append(f"{module}: {here} has no floor: name one in tests/house.py")
            continue
        for target in imports(module, sources):
            top, there = target.partition(".")[0], room(target)
            if top in ("tests", "notebooks") or (top == "configs" and here not in (None, "experiments")):
                complaints.append(f"{module} imports {target}")
            if module.partition(".")[0] == "configs":
                if top in ("salt_jax", "experiments"):
                    complaints.append(f"{module} imports {target}: configs are data only")
                continue
            if target in sources and target != module:
                module_edges.setdefault(module, set()).add(target)
            if here is None or there is None or here == there or there not in FLOORS:
                continue
            room_edges.setdefault(here, set()).add(there)
            if FLOORS[there] > FLOORS[here]:
                complaints.append(f"{module} (floor {FLOORS[here]}) imports {target} (floor {FLOORS[there]})")
            if there in FORBIDDEN.get(here, ()):
                complaints.append(f"{module} imports {target}: {here} knows nothing of {there}")
    for circle in circles(room_edges) + circles(module_edges):
        complaints.append("circle: " + " → ".join(circle))
    return complaints


def heavy_complaints(sources: Sources) -> list[str]:
    """Imports of TensorFlow or torch, even inside a function."""
    return [
        f"{module} imports {target}"
        for module in sources
        for target in imports(module, sources)
        if target.partition(".")[0] in HEAVY and HEAVY_ALLOWED.get(module) != target.partition(".")[0]
    ]


def unsafe_complaints(sources: Sources) -> list[str]:
    """Pickles, evaluated strings, shells, remote code, archives, the network, and JAX's private modules."""
    complaints = []
    for module, text in sources.items():
        network = NETWORK - NETWORK_ALLOWED.get(module, set()) if module.startswith("salt_jax") else set()
        for target in imports(module, sources):
            if target.partition(".")[0] in UNSAFE_IMPORTS | network or target.startswith("jax._src"):
                complaints.append(f"{module} imports {target}")
        tree = parsed(text)
        known = _imported_names(tree)
        by_name = set() if module in BY_NAME_ALLOWED else BY_NAME
        unsafe = (UNSAFE_CALLS | UNSAFE_ATTRIBUTES | by_name) - UNSAFE_ALLOWED.get(module, set())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                first, dot, rest = ast.unparse(node.func).partition(".")
                name = known.get(first, first) + dot + rest
                method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
                if name in unsafe or method in UNSAFE_METHODS:
                    complaints.append(f"{module}:{node.lineno} calls {name}")
                given = {keyword.arg: keyword.value for keyword in node.keywords}
                for argument, value in given.items():
                    off = isinstance(value, ast.Constant) and value.value is False
                    if argument in UNSAFE_ARGUMENTS and not off:
                        complaints.append(f"{module}:{node.lineno} passes {argument}")
                for argument, wanted in NEEDED_ARGUMENTS.get(method, {}).items():
                    value = given.get(argument)
                    if not (isinstance(value, ast.Constant) and value.value is wanted):
                        complaints.append(f"{module}:{node.lineno} calls {name} without {argument}={wanted}")
    return complaints


def _imported_names(tree: ast.Module) -> dict[str, str]:
    """Name in the file → what was imported under it, wherever in the file: np → numpy, system → os.system."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names
