"""Tokenizers of pretrained models, from a Hugging Face folder or a GGUF file (extra `hf`; `smollm2` for GGUF)."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from salt_jax.tasks.tokenizer_files import folder_tokenizer, gguf_tokenizer, tried
from salt_jax.tasks.tokenizers import UNREADABLE, Prompt

# A model's embedding may have rows that no token uses, added so that devices divide it: 0.2 % in Qwen2.5, 2.3 % in
# DeepSeek-Math. A tokenizer that leaves more unused belongs to another model.
MOST_UNUSED = 0.05
# Arguments of ``apply_chat_template`` that are no variables of a template.
OURS = ("messages", "conversation", "tokenize", "add_generation_prompt", "continue_final_message", "return_dict")

# Today's date, for templates that write it, comes from a function that transformers puts beside the template and that
# cannot be given with it. Where a template names that function, this goes before it: the same, of a date of ours. The
# line end belongs to it, as it is dropped and the template begins at the beginning of a line.
PROBE = "salt-jax asks"  # a user's words that no template writes by itself
NOW = "strftime_now"
_DATED = """{%- macro strftime_now(format) -%}
{%- set made = namespace(text=format) -%}
{%- for code, text in strftime_codes.items() -%}{%- set made.text = made.text | replace(code, text) -%}{%- endfor -%}
{{- made.text -}}
{%- endmacro %}
"""
_CODES = "aAwdbBmyYHIMSfpzZjUWcxXGuVCDeFgGhklnrRsTtP"


class PretrainedTokenizer:
    """A pretrained model's tokenizer: ids for prompts in the model's own chat template, text for graders.

    Args:
      tokenizer: a fast tokenizer of ``transformers``.
      stop_ids: what ends a completion, besides the tokenizer's own end-of-sequence token; the first takes its place
        in a tokenizer that has none.
      chat: whether a prompt goes through the tokenizer's chat template, with the turn of the assistant opened;
        else a text is encoded as it is, after the begin-of-sequence token where the tokenizer adds one; what it
        adds behind a text is left out, for the text is to go on.
      system: content of a system message before a prompt that is a text; '' sends none, and a template may then
        add one of its own (SmolLM2's and Qwen2.5's do).
      template: further variables of the template, such as ``{'enable_thinking': False}`` for Qwen3.
      date: what a template that writes today's date gets, by ``strftime_now``; the time of this call by default.

    Raises:
      ValueError: no end-of-sequence token and no stop id; chat without a template, or with one that is no Jinja or
        refuses the system message; system or template without chat.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        stop_ids: Sequence[int] = (),
        chat: bool = True,
        system: str = "",
        template: Mapping[str, Any] | None = None,
        date: datetime.datetime | None = None,
    ) -> None:
        if tokenizer.eos_token_id is None and not stop_ids:
            raise ValueError(
                "the tokenizer has no end-of-sequence token, and the model no stop id: set eos_token_id in "
                "generation_config.json, or eos_token in tokenizer_config.json"
            )
        if chat and not tokenizer.chat_template:
            raise ValueError("model.chat = True but the tokenizer has no chat template; allowed: False")
        if not chat and (system or template):
            raise ValueError("model.system and model.template are for model.chat = True, which is False")
        if wrong := sorted(set(template or {}) & set(OURS)):
            raise ValueError(f"model.template = {dict(template or {})!r} must not have {wrong[0]}, which is set here")
        several = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
        if chat and several and "default" not in several and "chat_template" not in (template or {}):
            names = ", ".join(map(repr, several))
            raise ValueError(f"model.template must name the chat_template: the tokenizer has {names}, and no 'default'")
        self._tokenizer, self._chat, self._system, self._template = tokenizer, chat, system, dict(template or {})
        self._date = datetime.datetime.now() if date is None else date
        self.eos_id = int(stop_ids[0] if tokenizer.eos_token_id is None else tokenizer.eos_token_id)
        pad, bos = tokenizer.pad_token_id, tokenizer.bos_token_id
        self.pad_id = self.eos_id if pad is None else int(pad)
        self.bos_id = self.eos_id if bos is None else int(bos)
        self.stop_ids = tuple(sorted({self.eos_id, *map(int, stop_ids)}))
        self.vocab_size = len(tokenizer)
        self.largest_id = max(tokenizer.get_vocab().values(), default=-1)
        if chat:
            self._check_template()

    def __repr__(self) -> str:
        return f"PretrainedTokenizer({self.vocab_size} tokens, stop ids {self.stop_ids})"

    def encode(self, text: str) -> list[int]:
        """Ids of a text; no special token is added, but those written out in it are recognised."""
        return tried(lambda: self._tokenizer.encode(text, add_special_tokens=False), *self._refused(text))

    def _refused(self, text: str) -> tuple[str, str]:
        return "the tokenizer", f"refuses the text {text[:40]!r}"

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Ids of a whole prompt, in the chat template where ``chat`` is on.

        Behind messages the assistant's turn is opened. Where the last of them is the assistant's, it is that turn, left
        open: the policy goes on behind its words.

        Raises:
          ValueError: messages without ``chat``; what the template itself refuses.
        """
        if not self._chat:
            if not isinstance(prompt, str):
                raise ValueError("a prompt of messages needs model.chat = True")
            return self._begun(prompt)
        return self.encode(self.written(prompt))

    def written(self, prompt: Prompt) -> str:
        """A prompt's text in the chat template.

        Raises:
          ValueError: what the template refuses; no ``chat``.
        """
        if not self._chat:
            raise ValueError("only with model.chat = True is a prompt written in the chat template")
        return self._in_template(prompt, self._date)

    def writes_date(self, prompt: Prompt) -> bool:
        """Whether the chat template writes the date, or the time, into a prompt."""
        if not self._chat or NOW not in self._tokenizer.get_chat_template(self._template.get("chat_template")):
            return False
        other = self._date + datetime.timedelta(days=3683, hours=5, minutes=7, seconds=11)  # another in every part
        return self._in_template(prompt, self._date) != self._in_template(prompt, other)

    def _in_template(self, prompt: Prompt, date: datetime.datetime) -> str:
        messages = [dict(message) for message in prompt] if not isinstance(prompt, str) else self._messages(prompt)
        try:
            return self._written(messages, date)
        except Exception as error:  # Jinja's own errors, and those that templates raise: all about this prompt
            raise ValueError(f"the chat template refused a prompt: {_reason(error)}") from None

    def _written(self, messages: list[dict[str, str]], date: datetime.datetime) -> str:
        goes_on = messages[-1]["role"] == "assistant"
        template = self._tokenizer.get_chat_template(self._template.get("chat_template"))
        dated: dict[str, Any] = {}
        if NOW in template:
            dated = {"chat_template": _DATED + template, "strftime_codes": strftime_codes(date)}
        return self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not goes_on, continue_final_message=goes_on,
            **(self._template | dated),
        )  # fmt: skip

    def _check_template(self) -> None:
        """That the template is one, and has a place for the system message; prompts are looked at one by one later."""
        try:
            written = self._written([{"role": "user", "content": PROBE}], self._date)
        except Exception as error:
            if type(error).__name__ == "TemplateSyntaxError":
                raise ValueError(f"the chat template cannot be read: {_reason(error)}") from None
            return  # it may want messages of another kind
        if PROBE not in written.lower():
            raise ValueError(f"the chat template leaves out what the user says: it writes {written[:60]!r}")
        self._check_variables()
        try:
            self._written(self._messages("x"), self._date)
        except Exception as error:
            refused = f"model.system = {self._system!r}: the model's chat template refuses a system message"
            raise ValueError(f"{refused}: {_reason(error)}") from None

    def _check_variables(self) -> None:
        """That the template reads what ``model.template`` sets."""
        from jinja2 import Environment, TemplateError, meta

        try:
            names = meta.find_undeclared_variables(
                Environment().parse(self._tokenizer.get_chat_template(self._template.get("chat_template")))
            )
        except TemplateError:  # tags that only transformers knows
            return
        unread = sorted(set(self._template) - names - {"chat_template"})
        if unread:
            own = ", ".join(sorted(names - {*OURS, "raise_exception", "bos_token", "eos_token", NOW})) or "no variable"
            raise ValueError(f"model.template has {unread[0]}, which the chat template does not read; it reads {own}")

    def _begun(self, text: str) -> list[int]:
        """Ids of a text behind what the tokenizer puts before it, without what it puts after it."""
        whole, plain = tried(lambda: self._tokenizer.encode(text), *self._refused(text)), self.encode(text)
        starts = (i for i in range(len(whole) - len(plain) + 1) if whole[i : i + len(plain)] == plain)
        begins = next(starts, None)
        return whole if begins is None else [*whole[:begins], *plain]

    def _messages(self, text: str) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self._system}] if self._system else []
        return [*system, {"role": "user", "content": text}]

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first stop id; other special tokens are written out, ids beyond the vocabulary as U+FFFD."""
        kept: list[int] = []
        for i in np.asarray(ids).tolist():
            if i in self.stop_ids:
                break
            kept.append(i)
        pieces, run = [], []
        for i in kept:
            if 0 <= i < self.vocab_size:
                run.append(i)
            else:
                pieces += [self._text(run), UNREADABLE]
                run = []
        return "".join([*pieces, self._text(run)])

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) if ids else ""

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json, tokenizer_config.json and the chat template, as ``transformers`` reads them."""
        self._tokenizer.save_pretrained(folder)


def load_tokenizer(
    source: str | Path,
    *,
    vocab_size: int,
    stop_ids: Sequence[int] = (),
    chat: bool = True,
    system: str = "",
    template: Mapping[str, Any] | None = None,
    date: datetime.datetime | None = None,
) -> PretrainedTokenizer:
    """The tokenizer in a Hugging Face folder, or in a GGUF file.

    Args:
      source: folder with tokenizer.json, or a .gguf file. No code in it is run, nothing is downloaded.
      vocab_size: V of the model; a tokenizer may leave a few rows unused, never the other way round.
      stop_ids: the model's, from its generation_config.json.
      chat: see ``PretrainedTokenizer``.
      system: see ``PretrainedTokenizer``.
      template: see ``PretrainedTokenizer``.
      date: see ``PretrainedTokenizer``.

    Raises:
      ValueError: no tokenizer there, one for another vocabulary, a stop id outside it; see ``PretrainedTokenizer``.
        A message that begins with no key of config.model begins with the source.
      ImportError: the extra is not installed.
    """
    source = Path(source)
    raw = gguf_tokenizer(source) if source.suffix == ".gguf" else folder_tokenizer(source)
    try:
        tokenizer = PretrainedTokenizer(raw, stop_ids=stop_ids, chat=chat, system=system, template=template, date=date)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith("model.") else f"{source}: {error}") from None
    check_vocabulary(tokenizer, vocab_size, str(source))
    return tokenizer


def describe_tokenizer(source: Path, *, vocab_size: int, stop_ids: Sequence[int]) -> str:
    """A model's tokenizer in a line for people, once it is known to fit; it raises as ``load_tokenizer`` does."""
    raw = gguf_tokenizer(source) if source.suffix == ".gguf" else folder_tokenizer(source)
    template = bool(raw.chat_template)
    tokens = load_tokenizer(source, vocab_size=vocab_size, stop_ids=stop_ids, chat=template).vocab_size
    chat = "a chat template" if template else "no chat template: config.model.chat = False"
    return f"{source}, {tokens} tokens, {chat}"


def strftime_codes(date: datetime.datetime) -> dict[str, str]:
    """What each code of ``strftime`` stands for, in an order in which one can be replaced after the other.

    Example:
      >>> codes = strftime_codes(datetime.datetime(2026, 11, 8))
      >>> codes["%d"], codes["%-d"], codes["%b"], codes["%Y"]
      ('08', '8', 'Nov', '2026')
    """
    literal = "\0"  # for %% until the end: '%%d' is no day
    codes = {"%%": literal}
    for letter in dict.fromkeys(_CODES):
        for code in (f"%-{letter}", f"%{letter}"):
            codes[code] = date.strftime(code)
    return codes | {literal: "%"}


def check_vocabulary(tokenizer: PretrainedTokenizer, vocab_size: int, source: str) -> None:
    """ValueError unless the tokenizer's ids fit the model's embedding."""
    there = f"the tokenizer in {source} has {tokenizer.vocab_size} tokens, the model a vocabulary of {vocab_size}"
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(f"{there}: ids past it have no embedding")
    largest = tokenizer.largest_id
    if largest >= vocab_size:
        raise ValueError(f"the tokenizer in {source} has token id {largest}, the model a vocabulary of {vocab_size}")
    if tokenizer.vocab_size < (1 - MOST_UNUSED) * vocab_size:
        raise ValueError(f"{there}: it belongs to another model")
    outside = [i for i in tokenizer.stop_ids if not 0 <= i < vocab_size]
    if outside:
        raise ValueError(f"stop id {outside[0]} is outside the model's vocabulary of {vocab_size}")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
