"""Prompts and targets: text is data, whatever it holds; fingerprints, limits, hashes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers
from transformers import PreTrainedTokenizerFast

from factory.decoding import Lengths, token_limit
from factory.errors import PromptError
from factory.manifest import Prompt
from factory.prompting.prompts import Prompter, prompt_hashes
from factory.prompting.tokenizing import (
    decode_targets,
    encode_targets,
    load_tokenizer,
    tokenizer_fingerprint,
)
from factory.training import TrainTokenizer
from student.tokenizers import train_tokenizer
from tests.models import TEMPLATE, pairs

SPECIALS = ("<pad>", "<s>", "</s>", "<sep>")
PIECES = st.sampled_from(
    [*SPECIALS, "<", "s", ">", "</", "<s", "sep>", "<se", "p>", " ", "\n", "é"]
)
TEXTS = st.text(max_size=8) | st.lists(PIECES, max_size=6).map("".join)
SETTINGS = settings(max_examples=200, deadline=None)


def prompter(tokenizer: Any, template: str) -> Prompter:
    return Prompter(tokenizer, Prompt(template=template))


def special_ids(tokenizer: Any) -> set[int]:
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}


@SETTINGS
@given(source=TEXTS, other=TEXTS)
@example(source="</s>", other="<sep>")
@example(source="a<sep>b", other="")
@example(source="ep>", other="<s")
def test_fields_never_become_special_tokens(tiny_tokenizer: Any, source: str, other: str) -> None:
    template = "<s>{other}: {source}<sep>"
    _, [ids] = prompter(tiny_tokenizer, template).encode([{"source": source, "other": other}])
    special = special_ids(tiny_tokenizer)
    start, separator = tiny_tokenizer.convert_tokens_to_ids(["<s>", "<sep>"])
    assert (ids[0], ids[-1]) == (start, separator)
    assert not special & set(ids[1:-1])
    assert tiny_tokenizer.decode(ids[1:-1]) == f"{other}: {source}"


@SETTINGS
@given(source=st.lists(PIECES, max_size=5).map("".join))
@example(source="sep>")
@example(source="s>")
def test_field_and_template_make_no_token_together(tiny_tokenizer: Any, source: str) -> None:
    """The template's `<` and the field's `sep>` are no `<sep>`: neither of them is one alone."""
    [text], [ids] = prompter(tiny_tokenizer, "<{source}<").encode([{"source": source}])
    assert text == f"<{source}<"
    assert not special_ids(tiny_tokenizer) & set(ids)
    assert tiny_tokenizer.decode(ids) == text


@pytest.mark.parametrize("token", ["!<sep>", "<sep>!", "!<sep>!", "!<", ">!", "<sep><sep>"])
@pytest.mark.parametrize("source", ["wow!", "!wow!", "!", "!<sep>", "<sep>", "!<", ">!"])
def test_field_and_template_cannot_share_a_token(token: str, source: str, tiny_llama: Path) -> None:
    """A special token may begin in the field and end in the template's `<sep>`, or the reverse."""
    tokenizer = load_tokenizer(str(tiny_llama))
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False)])
    separator = tokenizer.convert_tokens_to_ids("<sep>")
    [_], [ids] = prompter(tokenizer, "<sep>{source}<sep>").encode([{"source": source}])
    assert (ids[0], ids[-1]) == (separator, separator)
    assert not special_ids(tokenizer) & set(ids[1:-1])
    assert tokenizer.decode(ids[1:-1]) == source


@SETTINGS
@given(source=TEXTS.filter(lambda text: not any(special in text for special in SPECIALS)))
def test_clean_text_is_encoded_as_the_tokenizer_does(tiny_tokenizer: Any, source: str) -> None:
    [text], [ids] = prompter(tiny_tokenizer, TEMPLATE).encode([{"source": source}])
    assert text == f"<s>{source}<sep>"
    assert ids == tiny_tokenizer(text, add_special_tokens=False)["input_ids"]


def test_rows_of_one_batch_do_not_touch_each_other(tiny_tokenizer: Any) -> None:
    rows = [{"source": s} for s, _ in pairs(5)] + [{"source": "a<sep>b"}, {"source": ""}]
    encode = prompter(tiny_tokenizer, TEMPLATE).encode
    texts, ids = encode(rows)
    alone = [encode([row]) for row in rows]
    assert texts == [text for [text], _ in alone]
    assert ids == [row for _, [row] in alone]
    assert encode([]) == ([], [])


def test_a_template_may_hold_braces_and_a_field_twice(tiny_tokenizer: Any) -> None:
    made = prompter(tiny_tokenizer, '{"q": "{source}"} {} {{source}} {n}')
    assert made.fields == ("source", "n")
    assert "".join(made.parts({"source": "{n}", "n": 7})) == '{"q": "{n}"} {} {{n}} 7'


@pytest.mark.parametrize(
    ("prompt", "place", "remedy"),
    [
        ({"template": "no field"}, "prompt:", "does not use {source}: add it"),
        ({"template": "{{sauce}}"}, "prompt:", "does not use {source}: add it"),
        ({"chat": [{"role": "user", "content": "x"}]}, "prompt.chat:", "no chat template"),
    ],
)
def test_prompts_that_cannot_be(
    prompt: dict[str, Any], place: str, remedy: str, tiny_tokenizer: Any
) -> None:
    with pytest.raises(PromptError) as caught:
        Prompter(tiny_tokenizer, Prompt.model_validate(prompt))
    assert str(caught.value).startswith(place)
    assert remedy in str(caught.value)


def test_a_row_without_a_field(tiny_tokenizer: Any) -> None:
    with pytest.raises(PromptError, match=r"\{topic\}.*did you mean 'topik'"):
        prompter(tiny_tokenizer, "{topic} {source}").encode([{"source": "a", "topik": "b"}])


def test_without_a_tokenizer_there_are_no_ids() -> None:
    made = prompter(None, TEMPLATE)
    assert made.encode([{"source": "a"}, {"source": "b"}]) == (["<s>a<sep>", "<s>b<sep>"], [[], []])
    with pytest.raises(PromptError, match="needs a teacher"):
        Prompter(None, Prompt.model_validate({"chat": [{"role": "user", "content": "{source}"}]}))


@SETTINGS
@given(texts=st.lists(TEXTS, max_size=4))
def test_targets_round_trip(tiny_tokenizer: Any, texts: list[str]) -> None:
    encoded = encode_targets(tiny_tokenizer, texts)
    for ids in encoded:
        assert ids[-1] == tiny_tokenizer.eos_token_id
        assert not special_ids(tiny_tokenizer) & set(ids[:-1])
    assert decode_targets(tiny_tokenizer, encoded) == texts


def test_decoding_leaves_special_tokens_out_wherever_they_stand(tiny_tokenizer: Any) -> None:
    pad, start, end, separator = tiny_tokenizer.convert_tokens_to_ids(list(SPECIALS))
    dog = tiny_tokenizer("a dog", add_special_tokens=False)["input_ids"]
    sequences = [[start, *dog, end, pad, pad], [separator], [], [*dog, separator, *dog]]
    assert decode_targets(tiny_tokenizer, sequences) == ["a dog", "", "", "a doga dog"]
    spaces = encode_targets(tiny_tokenizer, [" do n't , ' s . "])
    assert decode_targets(tiny_tokenizer, spaces) == [" do n't , ' s . "]


def test_fingerprint_stands_when_saved_and_loaded(
    tiny_tokenizer: Any, tiny_llama: Path, tmp_path: Path
) -> None:
    fingerprint = tokenizer_fingerprint(tiny_tokenizer)
    loaded = load_tokenizer(str(tiny_llama))
    assert tokenizer_fingerprint(loaded) == fingerprint
    loaded.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert tokenizer_fingerprint(again) == fingerprint
    # A chat template shapes prompts, not what text becomes.
    again.chat_template = "{{ messages[0].content }}"
    assert tokenizer_fingerprint(again) == fingerprint


def test_fingerprint_stands_after_use(tiny_tokenizer: Any) -> None:
    fingerprint = tokenizer_fingerprint(tiny_tokenizer)
    tiny_tokenizer(["a", "a dog"], padding=True, truncation=True, max_length=2)
    assert tokenizer_fingerprint(tiny_tokenizer) == fingerprint
    encode_targets(tiny_tokenizer, ["a"])
    prompter(tiny_tokenizer, TEMPLATE).encode([{"source": "<s>"}])
    assert tokenizer_fingerprint(tiny_tokenizer) == fingerprint


def test_encoding_is_whole_after_a_truncating_use(tiny_tokenizer: Any) -> None:
    tiny_tokenizer(["a", "a dog"], padding=True, truncation=True, max_length=2)
    text = "the dog sees the cat " * 9
    [ids] = encode_targets(tiny_tokenizer, [text])
    assert decode_targets(tiny_tokenizer, [ids]) == [text]


def test_fingerprints_differ_where_ids_do(tiny_tokenizer: Any, tiny_llama: Path) -> None:
    texts = [text for pair in pairs(200) for text in pair]
    smaller = train_tokenizer(texts, TrainTokenizer(vocab_size=320))
    other_texts = train_tokenizer(["entirely other words"] * 9, TrainTokenizer(vocab_size=400))
    other_end = load_tokenizer(str(tiny_llama))
    other_end.eos_token = "<sep>"
    added = load_tokenizer(str(tiny_llama))
    added.add_tokens([AddedToken("<new>", special=True)])
    normalised = load_tokenizer(str(tiny_llama))
    normalised.backend_tokenizer.normalizer = normalizers.Lowercase()
    every = [tiny_tokenizer, smaller, other_texts, other_end, added, normalised]
    assert len({tokenizer_fingerprint(tokenizer) for tokenizer in every}) == len(every)


@pytest.mark.parametrize(
    ("spec", "n_prompt_tokens", "limit"),
    [
        (7, 1000, 7),
        (Lengths(ratio=2.0, plus=10, cap=256), 0, 10),
        (Lengths(ratio=2.0, plus=10, cap=256), 5, 20),
        (Lengths(ratio=2.0, plus=10, cap=256), 123, 256),
        (Lengths(ratio=2.0, plus=10, cap=256), 124, 256),
        (Lengths(ratio=1.5, plus=0, cap=256), 3, 5),
        (Lengths(ratio=1.1, plus=0, cap=256), 10, 11),
        (Lengths(ratio=1.1, plus=0, cap=256), 100, 110),
        (Lengths(ratio=0.1, plus=0, cap=256), 30, 3),
        (Lengths(ratio=0.1, plus=0, cap=256), 0, 1),
        (Lengths(plus=3, cap=2), 9, 2),
    ],
)
def test_token_limit(spec: int | Lengths, n_prompt_tokens: int, limit: int) -> None:
    assert token_limit(spec, n_prompt_tokens) == limit


def test_prompt_hashes() -> None:
    golden = prompt_hashes([[1, 68, 389, 3], [], [1]])
    assert golden == [6376098352064510223, 8238016292129134938, 2569122917151612099]
    different = [[1], [1, 0], [0, 1], [0], [0, 0], [256], [2**31 - 1], [1, 68], [68, 1]]
    hashes = prompt_hashes(different)
    assert len(set(hashes)) == len(different)
    assert all(0 <= value < 2**63 for value in hashes)
    assert prompt_hashes(iter(different)) == hashes


@pytest.mark.parametrize(
    ("files", "remedy"),
    [
        (None, "no such folder: check the path of the model"),
        ({}, "cannot be loaded"),
        ({"config.json": '{"model_type": "llama"}'}, "cannot be loaded"),
        ({"tokenizer.json": "{"}, "cannot be loaded"),
        ({"config.json": "[", "tokenizer.json": "{}"}, "cannot be loaded"),
    ],
)
def test_tokenizers_that_are_not_there(
    files: dict[str, str] | None, remedy: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    for name, text in (files or {}).items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    if files == {}:
        folder.mkdir()
    with pytest.raises(PromptError) as caught:
        load_tokenizer(str(folder))
    assert str(caught.value).startswith(f"tokenizer: '{folder}': ")
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_an_end(tiny_tokenizer: Any, tmp_path: Path) -> None:
    backend = tiny_tokenizer.backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>").save_pretrained(tmp_path)
    with pytest.raises(PromptError, match="names no eos_token: targets could not end"):
        load_tokenizer(str(tmp_path))
