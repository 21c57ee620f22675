"""The teacher's tokens as text: a table of the run, one row an id, for whoever looks at ids."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from factory.prompting.encoding import BLANK
from factory.records import RunDirectory
from factory.schemas import TOKENS
from factory.shards import write_part

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
Spelling = Callable[[str], bytes]


def keep_tokens(run: RunDirectory, tokenizer: PreTrainedTokenizerFast, fingerprint: str) -> None:
    """Keep the tokens beside the samples, once for each tokenizer, in the samples' record."""
    path = run.path("samples", f"tokens-{fingerprint}.parquet")
    files = run.step("samples")["files"]
    if any(file["path"] == run.relative(path) for file in files):
        return
    others = [file for file in files if file["table"] != "tokens"]
    rows = token_table(tokenizer)
    record = write_part(run, path, "tokens", [rows], TOKENS, {"tokenizer": fingerprint})
    run.amend("samples", files=[*others, record])


def token_table(tokenizer: PreTrainedTokenizerFast) -> pa.Table:
    r"""Rows of `schemas.TOKENS`, one for every id from 0 to the highest, in order.

    `bytes` is what the id adds to a text (NULL where the tokenizer has no such token); a first
    blank is part of it. `token` is the same, readable by itself: blanks as ▁, what is no UTF-8 as
    `\xc3`. Ids that only a padded head has are none of the tokenizer's, and have no row.
    """
    spelled = _spelled(tokenizer)
    ids = range(max(spelled, default=-1) + 1)
    written = [spelled.get(i) for i in ids]
    columns = [ids, [None if text is None else _readable(text) for text in written], written]
    arrays = [pa.array(values, f.type) for values, f in zip(columns, TOKENS, strict=True)]
    return pa.Table.from_arrays(arrays, schema=TOKENS)


def _readable(spelled: bytes) -> str:
    return spelled.decode(errors="backslashreplace").replace(" ", BLANK)


def _spelled(tokenizer: PreTrainedTokenizerFast) -> dict[int, bytes]:
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]
    spell = _spelling(decoder)
    spelled = {i: spell(token) for token, i in tokenizer.get_vocab().items()}
    if "ByteLevel" in {part["type"] for part in _parts(decoder)}:  # its added tokens are text
        added = tokenizer.added_tokens_decoder.items()
        spelled |= {i: token.content.encode() for i, token in added}
    return spelled


def _spelling(decoder: dict[str, Any] | None) -> Spelling:
    """How a token's name becomes bytes: what the tokenizer's decoder does to each, one by one."""
    steps = [made for part in _parts(decoder) if (made := _step(part))]

    def spell(token: str) -> bytes:
        text: str | bytes = token
        for step in steps:
            text = step(text) if isinstance(text, str) else text
        return text.encode() if isinstance(text, str) else text

    return spell


def _parts(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if decoder and decoder["type"] == "Sequence":
        for part in decoder["decoders"]:
            yield from _parts(part)
    elif decoder:
        yield decoder


def _step(part: dict[str, Any]) -> Callable[[str], str | bytes] | None:
    match part:
        case {"type": "ByteLevel"}:
            return _byte_level()
        case {"type": "ByteFallback"}:
            return _byte_fallback
        case {"type": "Metaspace", "replacement": mark}:
            return lambda token: token.replace(mark, " ")
        case {"type": "Replace", "pattern": {"String": old}, "content": new}:
            return lambda token: token.replace(old, new)
        case {"type": "WordPiece", "prefix": joint}:
            return lambda token: token[len(joint) :] if token.startswith(joint) else f" {token}"
        case {"type": "BPEDecoder", "suffix": end}:
            return lambda token: token.replace(end, " ")
    return None


def _byte_fallback(token: str) -> str | bytes:
    found = BYTE.fullmatch(token)
    return bytes([int(found[1], 16)]) if found else token


def _byte_level() -> Callable[[str], str | bytes]:
    """GPT-2's: printable Latin-1 characters stand for themselves, the other bytes from U+0100 on.

    The table is that of `bytes_to_unicode` in openai/gpt-2, src/encoder.py.
    """
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    names = {chr(byte): byte for byte in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}

    def spell(token: str) -> str | bytes:
        if all(character in names for character in token):
            return bytes(names[character] for character in token)
        return token

    return spell
