"""Tokenizers: loaded, told apart by what they do, and the two ways between targets and ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from factory.errors import ManifestError, PromptError
from factory.prompting.encoding import Encoder, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(model: str, revision: str | None = None) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer from a folder or a hub.

    Raises:
        PromptError: there is no tokenizer, or only a slow one.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        remedy = "reading tokenizers needs transformers: pip install 'seqkd[train]'"
        raise PromptError("tokenizer", model, remedy) from None
    if Path(model).is_absolute() and not Path(model).is_dir():
        raise PromptError("tokenizer", model, "no such folder: check the path of the model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
    except (OSError, ValueError) as error:
        raise PromptError("tokenizer", model, f"cannot be loaded: {_line(error)}") from None
    if not tokenizer.is_fast:
        raise PromptError("tokenizer", model, "has no tokenizer.json: convert it to a fast one")
    if tokenizer.eos_token_id is None:
        raise PromptError("tokenizer", model, "names no eos_token: targets could not end")
    return tokenizer


def first_token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of `generate.first_token`.

    Raises:
        ManifestError: the tokenizer has no such token.
    """
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise ManifestError("generate.first_token", token, "is no token of the teacher's")
    return int(found)


def target_start(
    tokenizer: PreTrainedTokenizerFast,
    first_token: str | None,
    model: str,
    revision: str | None = None,
) -> int | None:
    """The id that every target begins with: `generate.first_token`, or what the model forces.

    A target that was not decoded, such as gold, needs it as much as one that was. Checkpoints of
    encoder–decoders may force one themselves (`forced_bos_token_id`), as BART's and mBART's do.

    Raises:
        ManifestError: the tokenizer has no such token.
    """
    if first_token is not None:
        return first_token_id(tokenizer, first_token)
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(model, revision=revision)
    if not config.is_encoder_decoder:
        return None
    try:
        told = GenerationConfig.from_pretrained(model, revision=revision)
    except OSError:  # older checkpoints tell it in their configuration
        told = GenerationConfig.from_model_config(config)
    return None if told.forced_bos_token_id is None else int(told.forced_bos_token_id)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Digest of what decides how text becomes ids: vocabulary, merges, added and end tokens.

    Two tokenizers with the same fingerprint give the same ids; padding of a model's head, file
    names and library versions do not enter.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for volatile in ("truncation", "padding", "version", "post_processor"):
        backend.pop(volatile, None)
    facts = [backend, tokenizer.eos_token_id]
    canonical = json.dumps(facts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def encode_targets(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], start: int | None = None
) -> list[list[int]]:
    """Token ids of each text, special tokens not parsed, the end token appended.

    `start` is put before each, where targets begin with a forced token (`target_start`).

    Added tokens that are not special, such as <think>, are read as the tokens they are: unlike a
    prompt's text, which somebody else wrote, a target is what the student is to write, and the ids
    of a teacher's target must come back from its text. Decoding shows these tokens, so nothing can
    hide behind them; special ones it leaves out, so a text that spells one is only text.
    """
    if not texts:
        return []
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]
    sequences = [list(ids) for ids in encoded]
    _spell_out_special(tokenizer, texts, sequences)
    begin = [] if start is None else [start]
    return [[*begin, *ids, int(tokenizer.eos_token_id)] for ids in sequences]


def _spell_out_special(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], sequences: list[list[int]]
) -> None:
    """Some models (Unigram, WordLevel) find special tokens in their vocabulary all the same."""
    special = special_tokens(tokenizer)
    ids = set(tokenizer.convert_tokens_to_ids(sorted(special))) - {tokenizer.unk_token_id}
    found = [i for i, sequence in enumerate(sequences) if not ids.isdisjoint(sequence)]
    if found:
        encoder = Encoder(tokenizer, special)
        for i, anew in zip(found, encoder.encode([texts[i] for i in found]), strict=True):
            sequences[i] = anew


def decode_targets(
    tokenizer: PreTrainedTokenizerFast, sequences: Sequence[Sequence[int]]
) -> list[str]:
    """The text of each id sequence, special tokens left out, spaces as the tokenizer gives them."""
    if not sequences:
        return []
    texts: list[str] = tokenizer.batch_decode(
        [list(ids) for ids in sequences],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    return texts


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
