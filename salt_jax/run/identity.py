"""What a run is made from: data, model, tokenizer, template and grader, each by a fingerprint of its content.

A run that is resumed is made from what it was started with, wherever that lies now; anything else is refused by name.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from salt_jax.graders import Grader
from salt_jax.learner.settings import RunConfig
from salt_jax.models import integrity, policy_folder, run_steps
from salt_jax.models.hf import Checkpoint, open_checkpoint
from salt_jax.models.hf_tensors import INDEX, WEIGHTS
from salt_jax.run.code_fingerprints import of_module
from salt_jax.run.fingerprints import combined, of_file
from salt_jax.spec import ConfigError
from salt_jax.tasks import Source, Task
from salt_jax.tasks.gsm8k import data_files
from salt_jax.tasks.json_values import read_json
from salt_jax.tasks.settings import files_of

FILES = ("train", "test", "path")  # settings of the tasks that name files, or a folder of them
KINDS = ("task", "model", "init_from", "tokenizer", "template", "grader", "clusters")
CONFIGS = ("config.json", "generation_config.json")
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
PACKAGES = {  # that a grader may import, and their distributions: another version can grade otherwise
    "math_verify": "math-verify", "latex2sympy2_extended": "latex2sympy2-extended", "sympy": "sympy",
    "reasoning_gym": "reasoning-gym",
}  # fmt: skip
# What the template is asked to write, and the tokenizer to encode: words, numbers, white space, other scripts.
PROBES = (
    "What is 12 + 345?\n\n\tAnswer: \u00e9\u4e2d\U0001f600",
    (
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1=?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\n2"}, {"role": "user", "content": " 2+2=? "},
    ),
)  # fmt: skip


@dataclasses.dataclass
class Identity:
    """What a run is made from; all three go by name, as 'task.train', 'model.weights' or 'grader'.

    Attributes:
      fingerprints: of the content.
      details: a few words that differ where the content may, as '8 rows'.
      of: for people, what has the fingerprint.
    """

    fingerprints: dict[str, str] = dataclasses.field(default_factory=dict)
    details: dict[str, str] = dataclasses.field(default_factory=dict)
    of: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, name: str, fingerprint: str, of: str, detail: str = "") -> None:
        """Another part."""
        self.fingerprints[name], self.of[name] = fingerprint, of
        if detail:
            self.details[name] = detail

    def record(self) -> dict[str, Any]:
        """What is kept of it, as JSON."""
        return {"fingerprints": dict(self.fingerprints), "details": dict(self.details)}


def of_run(run: RunConfig, task: Task) -> Identity:
    """Everything that a run is made from.

    Raises:
      ConfigError: a file that cannot be read, its key named.
    """
    found = Identity()
    try:
        _add_data(found, run, task)
        if run.model.path:
            model = add_model(found, run.model.path)
            _add_tokenizer(found, run, task, model.tokenizer_source)
        if run.init_from:
            _add_policy(found, run.init_from)
        _add_grader(found, task.verifier)
        if ":" in run.collection.clusters:
            _add_code(found, "clusters", f"the code of {run.collection.clusters}", [run.collection.clusters])
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror or error}") from None
    return found


def files_in(run: RunConfig) -> dict[str, tuple[str, ...]]:
    """The paths in a configuration by key: 'config.task.train', 'config.model.path', 'config.init_from'."""
    named = {"config.model.path": run.model.path, "config.init_from": run.init_from}
    paths: dict[str, tuple[str, ...]] = {key: (path,) for key, path in named.items() if path}
    for prefix, settings, _ in _tasks(run, None):
        paths |= {f"config.{prefix}.{key}": files_of(key, settings[key]) for key in FILES if settings.get(key)}
    return paths


def _tasks(run: RunConfig, task: Task | None) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Source]]]:
    """The key of a task, its settings and its splits: of the run's own, or of each part of a mixture."""
    sources = {} if task is None else dict(task.sources)
    if run.task_name != "mixture":
        yield "task", run.task_arguments, sources
        return
    for name, settings in dict(run.task_arguments.get("parts") or {}).items():
        parts = {split: getattr(source, "parts", {}) for split, source in sources.items()}
        if isinstance(settings, Mapping):
            yield f"task.parts.{name}", settings, {split: own[name] for split, own in parts.items() if name in own}


def _add_data(found: Identity, run: RunConfig, task: Task) -> None:
    for prefix, settings, sources in _tasks(run, task):
        kind = settings.get("task", run.task_name)
        for key in FILES:
            if paths := files_of(key, settings.get(key) or ()):
                rows = sum(len(source) for split, source in sources.items() if key in (split, "path"))
                digest = _of_folder(paths[0]) if kind == "gsm8k" else _of_files(paths)
                found.add(f"{prefix}.{key}", digest, f"the content of {', '.join(paths)}", f"{rows} rows")
        if not any(settings.get(key) for key in FILES):  # generated: other settings are other problems, and refused
            for split, source in sources.items():
                digest = combined(_problems(kind, source))
                found.add(f"{prefix}.{split}", digest, f"the {split} split", f"{len(source)} rows")


def _of_files(paths: Sequence[str]) -> str:
    digests = [of_file(path, sampled=False) for path in paths]
    return digests[0] if len(digests) == 1 else combined(digests)


def _of_folder(folder: str) -> str:
    paths = [path for path in data_files(folder) if os.path.isfile(path)]
    return combined(f"{os.path.basename(path)} {of_file(path, sampled=False)}" for path in paths)


def _problems(kind: str, source: Source) -> Iterator[str]:
    for i in range(len(source)):
        example = source[i]
        # a problem of Reasoning Gym is all in its reference; the prompt has the form of answers, a setting, besides
        yield example.reference if kind == "reasoning_gym" else f"{example.prompt}\0{example.reference}"


def add_model(found: Identity, path: str) -> Checkpoint:
    """The model, opened, at config.model.path: 'model.config' where it is a folder, and 'model.weights'.

    Raises:
      OSError: a file that cannot be read.
    """
    model = open_checkpoint(path)
    where = model.path
    if where.is_file():  # GGUF: one file is all of it
        found.add("model.weights", of_file(where), f"the content of {path}")
        return model
    own = (where / policy_folder.POLICY).is_file()
    folder = where / policy_folder.SOURCE if own else where
    configs = [folder / name for name in CONFIGS] + ([where / policy_folder.POLICY] if own else [])
    found.add("model.config", _of_existing(configs), f"the content of {' or '.join(CONFIGS)} in {path}")
    if own and not (where / policy_folder.PARAMS).is_dir():
        step, digest = _of_checkpoint(where)
        found.add("model.weights", digest, f"the newest policy in {path}", step)
    elif own:
        found.add("model.weights", _of_tree(where / policy_folder.PARAMS), f"the content of the weights in {path}")
    else:
        found.add("model.weights", _of_existing(_weights(where)), f"the content of the weights in {path}")
    return model


def _weights(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    return [folder / name for name in sorted(set(read_json(folder / INDEX)["weight_map"].values()))]


def _of_existing(paths: Iterable[Path]) -> str:
    return combined(f"{path.name} {of_file(path)}" for path in paths if path.exists())


def _of_tree(folder: Path) -> str:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return combined(f"{path.relative_to(folder).as_posix()} {of_file(path)}" for path in paths)


def _add_policy(found: Identity, folder: str) -> None:
    step, digest = _of_checkpoint(Path(folder))
    found.add("init_from", digest, f"the newest policy in {folder}", step)


def _of_checkpoint(folder: Path) -> tuple[str, str]:
    """'step 8', and the digest of the parameters of a run's newest checkpoint, from the sums that it has of itself."""
    folder = Path(os.path.expanduser(folder))
    steps = integrity.steps(folder / run_steps.STEPS)
    if not steps:
        return "no step", combined([])
    where = folder / run_steps.STEPS / str(steps[-1])
    try:
        files = json.loads((where / integrity.MANIFEST).read_text())["files"]
        sums = [f"{name} {files[name]['sha256']}" for name in sorted(files) if name.startswith("params/")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # damaged: found, and said, when it is read
        sums = ["damaged"]
    return f"step {steps[-1]}", combined(sums)


def _add_tokenizer(found: Identity, run: RunConfig, task: Task, source: Path | None) -> None:
    files = [source / name for name in TOKENIZER] if source is not None and source.is_dir() else []
    ids = [json.dumps(task.tokenizer.encode(PROBES[0]))]  # type: ignore[arg-type]
    found.add("tokenizer", combined([_of_existing(files), *ids]), f"the tokenizer of {run.model.path}")
    if run.model.chat and hasattr(task.tokenizer, "written"):
        found.add("template", combined(map(_written_by(task.tokenizer), PROBES)), "what the chat template writes")


def _written_by(tokenizer: Any) -> Any:
    def written(prompt: Any) -> str:
        try:
            return tokenizer.written(prompt)
        except ValueError as error:  # a template may know no system message
            return f"refused: {error}"

    return written


def _add_grader(found: Identity, verifier: Any) -> None:
    paths, arguments = _graders(verifier)
    shown = [path for path in paths if not path.startswith("salt_jax.graders.custom:")]
    packages = _add_code(found, "grader", f"the grader {', '.join(shown)}, in code or arguments,", paths, arguments)
    if packages:
        versions = ", ".join(f"{PACKAGES[name]} {_version(PACKAGES[name])}" for name in sorted(packages))
        found.add("grader.packages", combined([versions]), "what the grader uses", versions)


def _add_code(found: Identity, name: str, of: str, paths: Sequence[str], arguments: Any = None) -> set[str]:
    """Adds the code behind import paths; which of ``PACKAGES`` it imports."""
    digests, packages = [json.dumps(arguments, sort_keys=True, default=str)], set[str]()
    for path in paths:
        code, imported = of_module(path.partition(":")[0])
        digests += [path, *(f"{file} {digest}" for file, digest in sorted(code.items()))]
        packages |= imported & PACKAGES.keys()
    found.add(name, combined(digests), of)
    return packages


def _graders(verifier: Any) -> tuple[list[str], Any]:
    """Import paths of a verifier and of all that its arguments name, and the arguments."""
    if not isinstance(verifier, Grader):
        return [f"{getattr(verifier, '__module__', '')}:{getattr(verifier, '__qualname__', '')}"], {}
    paths, arguments = [verifier.path], {name: value for name, value in verifier.arguments.items()}
    for named in (arguments, *arguments.values()):
        if isinstance(named, Mapping) and isinstance(named.get("path"), str):
            paths += _graders(Grader(named["path"], named.get("arguments") or {}))[0]
    return list(dict.fromkeys(paths)), arguments


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def differences(before: Mapping[str, Any], now: Identity, whose: str) -> dict[str, str]:
    """Name → what is not the same, for people; names that ``before`` has no fingerprint of are left out.

    Args:
      before: an earlier ``Identity.record()``.
      now: what there is.
      whose: what ``before`` is of.

    Example:
      >>> now = Identity()
      >>> now.add("task.train", "b1", "the content of train.jsonl", "3 rows")
      >>> before = {"fingerprints": {"task.train": "a0"}, "details": {"task.train": "8 rows"}}
      >>> differences(before, now, "the run's start")["task.train"]
      "task.train: the content of train.jsonl is not that of the run's start (8 rows → 3 rows)"
    """
    found = {}
    for name, fingerprint in before["fingerprints"].items():
        if name not in now.fingerprints:
            found[name] = f"{name}: {whose} had it, and here is nothing of that name"
        elif fingerprint != now.fingerprints[name]:
            earlier = before.get("details")
            details = [record.get(name) for record in (earlier if isinstance(earlier, dict) else {}, now.details)]
            change = f" ({details[0]} → {details[1]})" if all(details) and details[0] != details[1] else ""
            found[name] = f"{name}: {now.of[name]} is not that of {whose}{change}"
    return found


def check_names(allow: Sequence[str], names: Collection[str]) -> None:
    """ConfigError for a name in --allow that nothing of a run has.

    Example:
      >>> check_names(["task", "task.train"], ["task.train", "grader"])
      >>> check_names(["task.trian"], ["task.train"])
      Traceback (most recent call last):
      salt_jax.spec.ConfigError: --allow=task.trian is not allowed; allowed: task, model, init_from, ...
    """
    known = dict.fromkeys([*KINDS, *names])
    for name in allow:
        if name not in known:
            raise ConfigError(f"--allow={name} is not allowed; allowed: {', '.join(known)}")


def check_resumed(folder: Path, before: Mapping[str, Any], now: Identity, allow: Sequence[str]) -> list[str]:
    """That a run goes on with what it was started with.

    Args:
      folder: the run's.
      before: the record of its last start; {} where that was before there were fingerprints.
      now: what it would go on with.
      allow: names of what may differ; 'task' is also all of 'task.…'.

    Returns:
      Lines that a person should read.

    Raises:
      ConfigError: one line that names all that differs and is not allowed.
    """
    if not before:
        unknown = "whether data, model and grader are those of its start is unknown"
        return [f"{folder} is from before fingerprints: {unknown}; those of this start are kept"]
    found = differences(before, now, "the run's start")
    allowed = {name for name in found if name in allow or name.partition(".")[0] in allow}
    if refused := [name for name in found if name not in allowed]:
        what, way = "; ".join(found[name] for name in refused), f"to go on all the same: --allow={','.join(refused)}"
        raise ConfigError(f"--workdir={folder}: {what}; {way}; else name another folder")
    if not found:
        return []
    return [f"goes on with something else, as --allow says: {'; '.join(found.values())}; not the same bits as before"]
