"""Prompts as token ids. A row's text is data: it never becomes a control token."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from factory.errors import PromptError
from factory.manifest import Prompt
from factory.prompting.chat import Chat
from factory.prompting.encoding import Encoder, any_of, control_tokens
from factory.prompting.template import Parts, fill, pattern_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Prompter:
    """Renders rows into prompts and encodes them.

    A prompt is encoded as the tokenizer encodes its whole text, special tokens parsed and none
    added, except that only the manifest's and the chat template's own text can hold control tokens
    (see `encoding.control_tokens`): one that is spelled in a row's text, or that a row's text and
    its neighbour spell together, is encoded as the characters it is written with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast | None, prompt: Prompt) -> None:
        """Look at the prompt, its fields, and the tokenizer's chat template where it is asked for.

        Raises:
            PromptError: the prompt cannot work, whatever the rows.
        """
        self.tokenizer = tokenizer
        controls = control_tokens(tokenizer) if tokenizer else frozenset[str]()
        self.chat = None if prompt.template is not None else _chat(tokenizer, prompt, controls)
        self.pattern = pattern_of(prompt.template or "")
        names = self.chat.fields if self.chat else self.pattern[1::2]
        self.fields = tuple(dict.fromkeys(names))
        if prompt.messages is None and "source" not in self.fields:
            raise PromptError("prompt", None, "does not use {source}: add it")
        self._controls = any_of(controls)
        self._encoder = Encoder(tokenizer, controls) if tokenizer else None

    def parts(self, row: dict[str, Any]) -> Parts:
        """The prompt of one row in pieces: the prompt's own text and the row's by turns.

        Raises:
            PromptError: the row lacks what the prompt needs; `remedy` is the reason.
        """
        return self.chat.parts(row) if self.chat else fill(self.pattern, row)

    def encode(self, rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[int]]]:
        """Rendered text and token ids of each row; a row holds `source` and its other fields.

        Raises:
            PromptError: a row lacks what the prompt needs.
        """
        return self.encode_parts([self.parts(row) for row in rows])

    def encode_parts(self, prompts: Sequence[Parts]) -> tuple[list[str], list[list[int]]]:
        """Text and token ids of rendered prompts; without a tokenizer, no ids."""
        texts = ["".join(parts) for parts in prompts]
        if self._encoder is None:
            return texts, [[] for _ in prompts]
        return texts, self._encoder.encode([self._named(parts) for parts in prompts])

    def _named(self, parts: Parts) -> str:
        """The text in which the prompt's own control tokens go by their names in the encoder."""
        names = self._encoder.name if self._encoder else {}
        own = [self._controls.sub(lambda found: names[found[0]], text) for text in parts[::2]]
        named = list(parts)
        named[::2] = own
        return "".join(named)


def prompt_hashes(encoded: Iterable[Sequence[int]]) -> list[int]:
    """A 63-bit digest of each prompt's ids: what a stored candidate is checked against."""
    packed = (b"".join(i.to_bytes(4, "little") for i in ids) for ids in encoded)
    return [int.from_bytes(hashlib.blake2b(ids, digest_size=8).digest()) >> 1 for ids in packed]


def _chat(
    tokenizer: PreTrainedTokenizerFast | None, prompt: Prompt, controls: frozenset[str]
) -> Chat:
    if tokenizer is None:
        place = "prompt.chat" if prompt.chat else "prompt.messages"
        raise PromptError(place, None, "needs a teacher: without one use a template")
    return Chat(tokenizer, prompt, controls)
