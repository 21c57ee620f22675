"""Prompts and targets as token ids. A row's text is data: it never becomes a special token."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.errors import PromptError, nearest
from factory.manifest import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FIELD = re.compile(r"\{(\w+)\}")
PATTERN = list[str]  # literal, field name, literal, field name, …, literal


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


def encode_targets(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, special tokens not parsed, the end token appended."""
    encoded = _encode(tokenizer, list(texts), as_text=True)
    return [[*ids, int(tokenizer.eos_token_id)] for ids in encoded]


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


class Prompter:
    """Renders rows into prompts and encodes them.

    The rendered text is encoded whole, as the tokenizer does it. Where a row's fields hold what
    the tokenizer would read as a special token, the text is cut at the template's own special
    tokens and the pieces between them are encoded as plain text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast | None, prompt: Prompt) -> None:
        self.tokenizer = tokenizer
        self.pattern = FIELD.split(self._template(prompt))
        self.fields = tuple(dict.fromkeys(self.pattern[1::2]))
        if "source" not in self.fields:
            raise PromptError("prompt", None, "does not use {source}: add it")
        specials = sorted(_special_tokens(tokenizer), key=len, reverse=True) if tokenizer else []
        self.special = re.compile("|".join(map(re.escape, specials)) or r"(?!)")

    def render(self, row: dict[str, Any]) -> str:
        """The prompt of one row as text.

        Raises:
            PromptError: the row lacks a field that the template names.
        """
        return "".join(self._parts(row))

    def encode(self, rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[int]]]:
        """Rendered text and token ids of each row; a row holds `source` and its other fields.

        Raises:
            PromptError: a row lacks a field that the template names.
        """
        if self.tokenizer is None:
            return [self.render(row) for row in rows], [[] for _ in rows]
        parts = [self._parts(row) for row in rows]
        texts = ["".join(pieces) for pieces in parts]
        encoded = _encode(self.tokenizer, texts, as_text=False)
        for index, pieces in enumerate(parts):
            if self._forges(pieces, texts[index]):
                encoded[index] = self._encode_apart(pieces)
        return texts, encoded

    def _template(self, prompt: Prompt) -> str:
        if prompt.template is not None:
            return prompt.template
        if self.tokenizer is None:
            raise PromptError("prompt.chat", None, "needs a teacher: without one use a template")
        if not self.tokenizer.chat_template:
            raise PromptError("prompt.chat", None, "the tokenizer has no chat template: use one")
        messages = [message.model_dump() for message in prompt.chat or ()]
        rendered: str = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return rendered

    def _parts(self, row: dict[str, Any]) -> list[str]:
        parts = list(self.pattern)
        for index in range(1, len(parts), 2):
            name = parts[index]
            if name not in row:
                raise PromptError("prompt", f"{{{name}}}", f"no such field: {nearest(name, row)}")
            parts[index] = str(row[name])
        return parts

    def _forges(self, parts: Sequence[str], text: str) -> bool:
        """Whether the rendered text holds other special tokens than the template's literals do."""
        meant = []
        begin = 0
        for index, part in enumerate(parts):
            if index % 2 == 0:
                meant += self._specials(part, begin)
            begin += len(part)
        return meant != self._specials(text, 0)

    def _specials(self, text: str, begin: int) -> list[tuple[int, str]]:
        return [(begin + found.start(), found[0]) for found in self.special.finditer(text)]

    def _encode_apart(self, parts: Sequence[str]) -> list[int]:
        pieces: list[str] = [""]
        specials: list[str] = []
        for index, part in enumerate(parts):
            last = 0
            for match in self.special.finditer(part) if index % 2 == 0 else ():
                pieces[-1] += part[last : match.start()]
                pieces.append("")
                specials.append(match[0])
                last = match.end()
            pieces[-1] += part[last:]
        encoded = _encode(self._known(), pieces, as_text=True)
        ids = list(encoded[0])
        for token, piece in zip(specials, encoded[1:], strict=True):
            ids += [int(self._known().convert_tokens_to_ids(token)), *piece]
        return ids

    def _known(self) -> PreTrainedTokenizerFast:
        if self.tokenizer is None:
            raise PromptError("prompt", None, "needs a tokenizer: name a teacher")
        return self.tokenizer


def prompt_hashes(encoded: Iterable[Sequence[int]]) -> list[int]:
    """A 63-bit digest of each prompt's ids: what a stored candidate is checked against."""
    packed = (b"".join(i.to_bytes(4, "little") for i in ids) for ids in encoded)
    return [int.from_bytes(hashlib.blake2b(ids, digest_size=8).digest()) >> 1 for ids in packed]


def _encode(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], *, as_text: bool
) -> list[list[int]]:
    if not texts:
        return []
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=as_text,
        return_attention_mask=False,
        verbose=False,
    )
    return [list(ids) for ids in encoded["input_ids"]]


def _special_tokens(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    added = tokenizer.added_tokens_decoder.values()
    return [token.content for token in added if token.special]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
