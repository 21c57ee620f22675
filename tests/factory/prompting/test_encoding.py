"""Control tokens stand only where the caller puts them, whatever the tokenizer is made of."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from factory.prompting.encoding import Encoder, any_of, control_tokens, special_tokens
from factory.prompting.tokenizing import encode_targets
from tests.models import pairs

SPECIALS = ("<unk>", "<s>", "</s>", "<sep>")
MARKS = ("<think>", "</think>", "[INST]")
WORDS = ("franglais", "  ", "...")  # added, and vocabulary all the same
TEXTS = [text for pair in pairs(100) for text in pair] + ["<s> </s> <sep> <think> [INST]"] * 20
SETTINGS = settings(max_examples=80, deadline=None)
SPELLED = st.lists(
    st.sampled_from([*SPECIALS, *MARKS, *WORDS, "<", "s>", "think", ">", " ", "le roi", "é", "x"]),
    max_size=6,
).map("".join)
CLEAN = st.lists(
    st.sampled_from([" ", "le roi", "voit", "é", "X", "\n", *WORDS, "<", "a>"]), max_size=6
).map("".join)


def metaspace(scheme: str) -> Any:
    return pre_tokenizers.Metaspace(prepend_scheme=scheme)


def byte_level() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _trained(backend, trainers.BpeTrainer, initial_alphabet=backend.pre_tokenizer.alphabet())


def prefixed() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    return _trained(backend, trainers.BpeTrainer, initial_alphabet=backend.pre_tokenizer.alphabet())


def llama(scheme: str) -> Tokenizer:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = metaspace(scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return _trained(backend, trainers.BpeTrainer)


def old_llama() -> Tokenizer:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return _trained(backend, trainers.BpeTrainer)


def unigram(scheme: str) -> Tokenizer:
    """Its pieces hold the special tokens themselves, as T5's do."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = metaspace(scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return _trained(backend, trainers.UnigramTrainer, unk_token="<unk>")


def wordpiece() -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _trained(backend, trainers.WordPieceTrainer)


def _trained(backend: Tokenizer, trainer: Any, **options: Any) -> Tokenizer:
    trained = trainer(vocab_size=300, special_tokens=list(SPECIALS), show_progress=False, **options)
    backend.train_from_iterator(TEXTS, trained)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return backend


KINDS = {
    "byte level": byte_level,
    "byte level with a prefix space": prefixed,
    "metaspace first": lambda: llama("first"),
    "metaspace always": lambda: llama("always"),
    "metaspace never": lambda: llama("never"),
    "prepend": old_llama,
    "unigram first": lambda: unigram("first"),
    "unigram always": lambda: unigram("always"),
    "wordpiece": wordpiece,
}


@pytest.fixture(scope="module", params=KINDS, ids=lambda name: name.replace(" ", "-"))
def tokenizer(request) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(
        tokenizer_object=KINDS[request.param](),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<sep>"],
    )
    made.add_tokens([AddedToken(t, special=False, normalized=False) for t in (*MARKS, *WORDS)])
    return made


@pytest.fixture(scope="module")
def encoder(tokenizer) -> Encoder:
    return Encoder(tokenizer, control_tokens(tokenizer))


def whole(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def controls(tokenizer: Any) -> dict[int, str]:
    """Ids of control tokens; <unk> is also what the tokenizer cannot write."""
    every = control_tokens(tokenizer) - {"<unk>"}
    return {tokenizer.convert_tokens_to_ids(token): token for token in every}


def test_what_steers_a_model(tokenizer):
    assert special_tokens(tokenizer) == set(SPECIALS)
    assert control_tokens(tokenizer) == {*SPECIALS, *MARKS}


@SETTINGS
@given(parts=st.tuples(CLEAN, CLEAN, CLEAN), own=st.tuples(*[st.sampled_from(SPECIALS[1:])] * 2))
def test_clean_text_among_own_tokens_is_encoded_as_a_whole(tokenizer, encoder, parts, own):
    text = own[0].join([parts[0], own[1].join(parts[1:])])
    named = any_of(own).sub(lambda found: encoder.name[found[0]], text)
    assert encoder.encode([named]) == [whole(tokenizer, text)]


@SETTINGS
@given(text=SPELLED, first=st.booleans())
def test_no_text_spells_a_control_token(tokenizer, encoder, text, first):
    named = encoder.name["<s>"] * first + text + encoder.name["<think>"]
    [ids] = encoder.encode([named])
    wanted = ["<s>"] * first + ["<think>"]
    known = controls(tokenizer)
    assert [known[i] for i in ids if i in known] == wanted


@SETTINGS
@given(text=SPELLED)
def test_forged_text_decodes_to_itself(text):
    """With a byte-level model, which can write anything."""
    made = PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="</s>")
    made.add_tokens([AddedToken(t, special=False, normalized=False) for t in (*MARKS, *WORDS)])
    [ids] = Encoder(made, control_tokens(made)).encode([text])
    assert made.decode(ids) == text


def test_ids_are_the_tokenizers_own(tokenizer, encoder):
    for token in control_tokens(tokenizer):
        [ids] = encoder.encode([encoder.name[token]])
        assert tokenizer.convert_tokens_to_ids(token) in ids
    for word in ("franglais", "..."):
        assert tokenizer.convert_tokens_to_ids(word) in encoder.encode([f"x{word}x"])[0]


@pytest.mark.parametrize("spelled", ["</s>", "le </s> roi", "<s>", "le roi<sep>"])
def test_no_target_ends_before_its_end(tokenizer, spelled):
    [ids] = encode_targets(tokenizer, [spelled])
    special = {tokenizer.convert_tokens_to_ids(token) for token in SPECIALS[1:]}
    assert ids[-1] == tokenizer.eos_token_id
    assert special.isdisjoint(ids[:-1])


def test_marks_of_a_target_are_the_tokens_they_are(tokenizer):
    [ids] = encode_targets(tokenizer, ["<think>le</think>"])
    for mark in ("<think>", "</think>"):
        assert tokenizer.convert_tokens_to_ids(mark) in ids


def test_merges_and_pieces_that_make_a_control_token_are_left_out(tokenizer):
    """A token that the model itself can build, added afterwards."""
    text = "le roi voit"
    bare = PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="</s>")
    built = bare.convert_ids_to_tokens(whole(bare, text))
    longest = max((token for token in built if token.isascii()), key=len)
    bare.add_tokens([AddedToken(longest, special=True, normalized=False)])
    [ids] = Encoder(bare, {longest}).encode([text])
    assert bare.convert_tokens_to_ids(longest) not in ids
    assert bare.decode(ids) == text
