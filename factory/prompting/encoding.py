"""Text as token ids, with control tokens only where the caller puts them."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

BLANK = "▁"  # how SentencePiece writes a space


class Encoder:
    """Encodes text as a tokenizer does, but for chosen added tokens, which no text can spell.

    It works on a copy of the tokenizer in which each of those tokens goes by a name that nobody
    can guess. Text that spells the token is then text like any other, and the caller who wants the
    token writes its `name`. The whole text is encoded at once, so that whatever a tokenizer does at
    its beginning (Metaspace's prepend schemes, normalisers) is done there and nowhere else.

    The tokens vanish from the copy's vocabulary too: a Unigram model would find `</s>` among its
    pieces even where it is no added token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, hidden: Iterable[str]) -> None:
        nonce = f"{secrets.randbelow(10**30):030d}"
        # Digits alone, all of one length: no normaliser changes them, none begins another.
        self.name = {token: f"{nonce}{i:06d}" for i, token in enumerate(sorted(hidden))}
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        self._ids: dict[int, int] = {}
        self._copy = self._renamed(backend)
        for token in backend["added_tokens"]:
            found = self._copy.token_to_id(token["content"])
            if found is not None and found != token["id"]:
                self._ids[found] = token["id"]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; nothing is added before or after."""
        encoded = self._copy.encode_batch_fast(list(texts), add_special_tokens=False)
        if not self._ids:
            return [list(encoding.ids) for encoding in encoded]
        known = self._ids
        return [[known.get(i, i) for i in encoding.ids] for encoding in encoded]

    def _renamed(self, backend: dict[str, Any]) -> Tokenizer:
        from tokenizers import Tokenizer

        backend |= {"truncation": None, "padding": None, "post_processor": None}
        for token in backend["added_tokens"]:
            token["content"] = self.name.get(token["content"], token["content"])
        model = backend["model"]
        if isinstance(model["vocab"], list):
            model["vocab"] = [[self.name.get(piece, piece), p] for piece, p in model["vocab"]]
        else:
            model["vocab"] = {self.name.get(piece, piece): i for piece, i in model["vocab"].items()}
        if "merges" in model:
            model["merges"] = [pair for pair in model["merges"] if not self._makes_hidden(pair)]
        if model.get("unk_token") in self.name:
            model["unk_token"] = self.name[model["unk_token"]]
        return Tokenizer.from_str(json.dumps(backend))

    def _makes_hidden(self, merge: str | list[str]) -> bool:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        return not {left, right, left + right}.isdisjoint(self.name)


def special_tokens(tokenizer: PreTrainedTokenizerFast) -> frozenset[str]:
    """The added tokens that the tokenizer itself calls special: decoding can leave them out."""
    added = tokenizer.added_tokens_decoder.values()
    return frozenset(token.content for token in added if token.special)


def control_tokens(tokenizer: PreTrainedTokenizerFast) -> frozenset[str]:
    """The added tokens that steer a model: the special ones, and marks such as <think> or [INST].

    An added token is a mark if it begins and ends with punctuation around a letter or digit. The
    others (runs of blanks, words of a domain, dots) are vocabulary that text is made of.
    """
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    return special_tokens(tokenizer) | {token for token in added if _is_mark(token)}


def _is_mark(token: str) -> bool:
    text = token.strip().strip(BLANK)
    if not text or text[0].isalnum() or text[-1].isalnum():
        return False
    return any(character.isalnum() for character in text)


def any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds tokens as a tokenizer does: leftmost, then longest."""
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
