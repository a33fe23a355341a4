"""Pretrained tokenizers: templates, stop ids, vocabularies that do not fit, and the GGUF one against transformers'."""

from __future__ import annotations

import contextlib
import datetime
import json

import pytest
import tokenizers
import transformers
from transformers.utils import chat_template_utils

from salt_jax.models.gguf import smollm2_path
from salt_jax.tasks.hf_tokenizer import PretrainedTokenizer, check_vocabulary, load_tokenizer
from salt_jax.tasks.paths import LFS
from salt_jax.tasks.tokenizer_files import _KEYS
from tests.pretrained_setup import TEMPLATE, WORDS
from tests.pretrained_setup import fast_tokenizer as make

NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
SHOUTS = TEMPLATE.replace("m['content']", "m['content'] | upper")


def ids(*words: str) -> list[int]:
    return [WORDS.index(word) for word in words]


@pytest.mark.parametrize(
    ("options", "prompt", "expected"),
    [
        ({}, "one", ["<user>", "one", "<assistant>"]),
        ({"system": "two"}, "one", ["<system>", "two", "<user>", "one", "<assistant>"]),
        ({"template": {"loud": True}}, "one", ["<user>", "one", "<assistant>", "?"]),
        ({"chat": False}, "one plus", ["one", " ", "plus"]),
        ({"template": {"chat_template": "rag"}}, "one", ["<user>", "one", "<assistant>"]),
        (  # messages are taken as they are: a system message of the run does not come before them
            {"system": "two"},
            ({"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}),
            ["<user>", "one", "<assistant>", "two"],  # the assistant's turn goes on
        ),
        (  # a system message of the data is no turn of the assistant
            {},
            ({"role": "user", "content": "one"}, {"role": "system", "content": "two"}),
            ["<user>", "one", "<system>", "two", "<assistant>"],
        ),
    ],
)
def test_prompts(options, prompt, expected):
    template = {"rag": TEMPLATE} if "chat_template" in options.get("template", {}) else TEMPLATE
    assert PretrainedTokenizer(make(template), **options).encode_prompt(prompt) == ids(*expected)


@pytest.mark.parametrize(
    ("added", "prompt", "expected"),
    [
        ("<user> $A <end>", "one plus", ["<user>", "one", " ", "plus"]),  # what it puts before a text stays
        ("$A <end>", "one", ["one"]),
        ("$A <other-end> <end>", "one", ["one"]),
        ("<user> $A", "one", ["<user>", "one"]),
        ("<user> $A <end>", "one<end>", ["<user>", "one", "<end>"]),  # the text's own
        ("<user> $A <end>", "<end>", ["<user>", "<end>"]),
    ],
)
def test_no_end_token_stands_behind_a_prompt(added, prompt, expected):
    fast = make()
    special = [(word, WORDS.index(word)) for word in ("<user>", "<end>", "<other-end>")]
    fast.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(added, special_tokens=special)
    tokenizer = PretrainedTokenizer(fast, chat=False)
    assert tokenizer.encode_prompt(prompt) == ids(*expected)
    assert PretrainedTokenizer(fast).encode_prompt("one") == ids("<user>", "one", "<assistant>")


def test_a_stop_id_of_the_model_ends_where_the_tokenizer_has_no_end():
    tokenizer = PretrainedTokenizer(make(eos_token=None, pad_token=None), stop_ids=[10, 1])
    assert (tokenizer.eos_id, tokenizer.stop_ids, tokenizer.pad_id) == (10, (1, 10), 10)
    assert tokenizer.decode(ids("one", "<other-end>", "two")) == "one"


DATED = "{{ strftime_now('%d %b %Y') }}"


@pytest.mark.parametrize(
    "template",
    [
        f"Today: {DATED}\n{TEMPLATE}",
        f"\n  {{%- if strftime_now is defined %}}\n  {DATED}{{% endif %}} \n\n" + TEMPLATE,
        "{% macro f() %}{{ strftime_now(format='%-d.%y %H:%M:%S %j %A %%d') }}{% endmacro %}\n  {{ f() }}" + TEMPLATE,
        "{{ strftime_now('%Y')|int + 1 }}{% if strftime_now('%m') == '02' %}leap{% endif %}" + TEMPLATE,
        "{% set date_string = date_string or strftime_now('%B') %}{{ date_string }}" + TEMPLATE,
    ],
)
def test_a_template_gets_the_date_that_is_given(template, monkeypatch):
    """As transformers gives it today's."""
    date = datetime.datetime(2024, 2, 9, 5, 7, 8)

    class Then(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return date

    ours = PretrainedTokenizer(make(template), date=date)
    monkeypatch.setattr(chat_template_utils, "datetime", Then)
    theirs = make(template).apply_chat_template(
        [{"role": "user", "content": "one"}], tokenize=False, add_generation_prompt=True
    )
    assert ours.written("one") == theirs
    assert ours.writes_date("one")
    assert ours.encode_prompt("one") == ours.encode(theirs)


@pytest.mark.parametrize(
    ("template", "variables"),
    [
        (TEMPLATE, {}),
        ("{% set day = day or strftime_now('%B') %}{{ day }}" + TEMPLATE, {"day": "May"}),
        ("{% if messages[0]['role'] == 'system' %}" + DATED + "{% endif %}" + TEMPLATE, {}),
    ],
)
def test_a_template_that_writes_no_date(template, variables):
    tokenizer = PretrainedTokenizer(make(template), template=variables)
    assert not tokenizer.writes_date("one")
    assert not PretrainedTokenizer(make(template), chat=False).writes_date("one")
    with pytest.raises(ValueError, match="only with model.chat = True"):
        PretrainedTokenizer(make(template), chat=False).written("one")


def test_text_is_encoded_without_special_tokens_and_decoded_to_the_first_stop():
    tokenizer = PretrainedTokenizer(make(), stop_ids=[WORDS.index("<other-end>")])
    assert tokenizer.stop_ids == tuple(ids("<end>", "<other-end>"))
    assert tokenizer.encode("one plus two") == ids("one", " ", "plus", " ", "two")
    assert tokenizer.decode(ids("one", "<other-end>", "two")) == "one"
    assert tokenizer.decode(ids("one", "<end>", "two")) == "one"
    assert tokenizer.decode(ids("one", "<user>", "two")) == "one<user>two"  # seen by graders, not hidden
    assert tokenizer.decode([*ids("one"), len(WORDS) + 3, *ids("two")]) == "one\ufffdtwo"
    assert tokenizer.decode([]) == ""


def test_pad_and_begin_default_to_the_end():
    assert PretrainedTokenizer(make()).pad_id == 0
    assert PretrainedTokenizer(make()).bos_id == 1
    assert PretrainedTokenizer(make(pad_token=None)).pad_id == 1


@pytest.mark.parametrize(
    ("make_tokenizer", "message"),
    [
        (lambda: PretrainedTokenizer(make(template=None)), "model.chat = True but the tokenizer has no chat template"),
        (lambda: PretrainedTokenizer(make(eos_token=None)),
         "no end-of-sequence token, and the model no stop id: set eos_token_id in generation_config.json, or"),
        (lambda: PretrainedTokenizer(make(template="{% for m in messages %}")), "the chat template cannot be read: "),
        (lambda: PretrainedTokenizer(make(template={"tool": TEMPLATE, "rag": TEMPLATE})),
         "^model.template must name the chat_template: the tokenizer has 'tool', 'rag', and no 'default'$"),
        (lambda: PretrainedTokenizer(make(template=NO_SYSTEM), system="two"),
         "^model.system = 'two': the model's chat template refuses a system message: no system$"),
        (lambda: PretrainedTokenizer(make(template=NO_SYSTEM)).encode_prompt(({"role": "system", "content": "one"},)),
         "the chat template refused a prompt: no system$"),
        (lambda: PretrainedTokenizer(make(template=SHOUTS)).encode_prompt(({"role": "assistant", "content": "one"},)),
         "the chat template refused a prompt: continue_final_message is set but the final message does not appear"),
        (lambda: PretrainedTokenizer(make(), template={"add_generation_prompt": False}),
         "^model.template = .* must not have add_generation_prompt"),
        (lambda: PretrainedTokenizer(make(), chat=False, system="x"), "model.system and model.template"),
        (lambda: PretrainedTokenizer(make(), chat=False).encode_prompt(({"role": "user", "content": "one"},)),
         "needs model.chat = True"),
        (lambda: PretrainedTokenizer(make()).encode_prompt(({"role": "tool", "content": "one"},)),
         "the chat template refused a prompt: no tools"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_in_one_line(make_tokenizer, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_tokenizer()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("vocab_size", "message"),
    [
        (len(WORDS), None),
        (len(WORDS) - 1, "ids past it have no embedding"),
        (len(WORDS) + 1, "it belongs to another model"),  # 1 of 12 rows unused is more than 5 %
    ],
)
def test_a_vocabulary_must_fit_the_model(vocab_size, message):
    tokenizer = PretrainedTokenizer(make())
    if message is None:
        check_vocabulary(tokenizer, vocab_size, "here")
    else:
        with pytest.raises(ValueError, match=f"here has 11 tokens, the model a vocabulary of {vocab_size}: {message}"):
            check_vocabulary(tokenizer, vocab_size, "here")


def test_a_stop_id_outside_the_vocabulary():
    tokenizer = PretrainedTokenizer(make(), stop_ids=[len(WORDS)])
    with pytest.raises(ValueError, match=f"stop id {len(WORDS)} is outside"):
        check_vocabulary(tokenizer, len(WORDS), "here")


@pytest.mark.parametrize(
    ("template", "variables", "message"),
    [
        ("hello", {}, "the chat template leaves out what the user says: it writes 'hello'"),
        (TEMPLATE, {"lod": True}, "model.template has lod, which the chat template does not read; it reads loud"),
        (TEMPLATE, {"loud": True}, None),
    ],
)
def test_a_template_that_cannot_be_meant(template, variables, message):
    if message is None:
        PretrainedTokenizer(make(template), template=variables)
    else:
        with pytest.raises(ValueError, match=message):
            PretrainedTokenizer(make(template), template=variables)


def test_a_pointer_in_place_of_a_template(tmp_path):
    PretrainedTokenizer(make()).save(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(LFS)
    with pytest.raises(ValueError, match="chat_template.jinja is a Git LFS pointer"):
        load_tokenizer(tmp_path, vocab_size=len(WORDS))


def test_a_word_that_the_tokenizer_has_no_token_for(tmp_path):
    """Its library's own exception, which is neither of Python's kinds nor of one line."""
    PretrainedTokenizer(make()).save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"unk_token": "<pad>"', '"unk_token": "<absent>"'))
    with pytest.raises(ValueError, match="^the tokenizer refuses the text '.*three.*': .*Missing"):
        load_tokenizer(tmp_path, vocab_size=len(WORDS)).encode_prompt("three")


def test_an_id_far_outside_the_vocabulary(tmp_path):
    """The number of tokens fits the model, one of their ids does not."""
    PretrainedTokenizer(make()).save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace(f'"one": {WORDS.index("one")}', '"one": 1000000'))
    with pytest.raises(ValueError, match="has token id 1000000, the model a vocabulary of 11"):
        load_tokenizer(tmp_path, vocab_size=len(WORDS))


def test_a_saved_tokenizer_is_the_same_when_loaded(tmp_path):
    ours = PretrainedTokenizer(make(), system="two")
    ours.save(tmp_path)
    loaded = load_tokenizer(tmp_path, vocab_size=len(WORDS), system="two")
    assert loaded.encode_prompt("one") == ours.encode_prompt("one")
    assert (loaded.stop_ids, loaded.pad_id, loaded.vocab_size) == (ours.stop_ids, ours.pad_id, ours.vocab_size)


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="has no tokenizer: neither tokenizer.json"):
        load_tokenizer(tmp_path, vocab_size=11)
    with pytest.raises(ValueError, match="is no folder"):
        load_tokenizer(tmp_path / "absent", vocab_size=11)
    (tmp_path / "tokenizer.json").write_bytes(LFS)
    with pytest.raises(ValueError, match="tokenizer.json is a Git LFS pointer"):
        load_tokenizer(tmp_path, vocab_size=11)
    for text, message in (
        ("{", "tokenizer.json is not JSON"),
        ("[]", "tokenizer.json must hold a JSON object, got list"),
        ("{}", "it has no 'added_tokens'"),
        ('{"model": "BPE"}', "tokenizer.json: model must be an object, got 'BPE'"),
        ('{"added_tokens": ["a"]}', r"tokenizer.json: added_tokens must be a list of objects, got \['a'\]"),
        ('{"added_tokens": [], "model": {"type": "None"}}', ""),
    ):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(ValueError, match=f"the tokenizer in .* cannot be read: .*{message}") as caught:
            load_tokenizer(tmp_path, vocab_size=11)
        assert "\n" not in str(caught.value)


WILD = (True, "", "x", 0, -1, 1e308, float("nan"), [], [[]], {}, {"content": 3}, {"content": "<end>"}, {"a": {"b": []}})


@pytest.mark.parametrize(("file", "key"), [(file, key) for file, keys in _KEYS.items() for key in [*keys, "other"]])
def test_files_of_wild_values_are_one_line_or_open(file, key, tmp_path):
    """Whatever transformers would raise is one line; what is refused by its type names the file and the key."""
    PretrainedTokenizer(make()).save(tmp_path)
    path = tmp_path / file
    before = json.loads(path.read_text()) if path.exists() else {}
    for value in WILD:
        path.write_text(json.dumps(before | {key: value}))
        try:
            load_tokenizer(tmp_path, vocab_size=len(WORDS))
        except ValueError as error:
            said = str(error)
        else:
            said = ""
        assert "\n" not in said
        if key in _KEYS[file] and isinstance(value, list) and value:
            assert said.startswith(f"{path}: {key} must be ")
    path.write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object, got list"):
        load_tokenizer(tmp_path, vocab_size=len(WORDS))


def test_byte_order_marks(tmp_path):
    PretrainedTokenizer(make()).save(tmp_path)
    expected = load_tokenizer(tmp_path, vocab_size=len(WORDS)).encode_prompt("one plus")
    for path in tmp_path.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_tokenizer(tmp_path, vocab_size=len(WORDS)).encode_prompt("one plus") == expected


def test_code_in_a_folder_is_not_run(tmp_path):
    PretrainedTokenizer(make()).save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').write('x')\nclass Evil: pass\n")
    with contextlib.suppress(ValueError):  # refused, or read as what tokenizer.json says: both will do
        load_tokenizer(tmp_path, vocab_size=len(WORDS))
    assert not (tmp_path / "ran").exists()


TEXTS = [
    "What is 12 + 345? Answer: 357.", "x_1 = \\frac{3}{4}\n\n  and  y=−2", "def f(n):\n\treturn n ** 2  # ünïcödé ✓",
    "<|im_start|>user\nHi<|im_end|>\n", "", " ", "100000 3.14159 1,000", "don't we'll I'M", "日本語 العربية 🙂",
]  # fmt: skip


@pytest.mark.torch
@pytest.mark.slow
def test_the_gguf_tokenizer_is_that_of_transformers():
    path = smollm2_path()
    ours = load_tokenizer(path, vocab_size=49152)
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
        assert ours._tokenizer.decode(ours.encode(text)) == text
    messages = ({"role": "user", "content": TEXTS[0]},)
    rendered = theirs.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    assert ours.encode_prompt(messages) == ours.encode_prompt(TEXTS[0]) == ours.encode(rendered)
