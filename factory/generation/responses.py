"""What a teacher's response says: its answer without reasoning, its text, its stray tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from factory.decoding import Generate
from factory.engines.base import Hypothesis
from factory.prompting.encoding import special_tokens
from factory.prompting.tokenizing import decode_targets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Responses:
    """Reads hypotheses as `generate` says: what is reasoning, where the answer's text stops."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, generate: Generate) -> None:
        self._tokenizer, self._generate = tokenizer, generate
        special = special_tokens(tokenizer)
        self._special = frozenset(map(int, tokenizer.convert_tokens_to_ids(sorted(special))))
        starts = [tokenizer.bos_token, generate.first_token]
        self._starts = {tokenizer.convert_tokens_to_ids(token) for token in starts if token}

    def answer(self, hypothesis: Hypothesis) -> tuple[Hypothesis, npt.NDArray[np.int32] | None]:
        """A hypothesis without its reasoning, and the ids [m] cut off; None where nothing was.

        The cut is after the last `reasoning_end` and the blank tokens that follow it. A thought
        that never ended stays in sight, and so does one that ends inside a token which says more.
        Every value of the tokens cut goes with them; a sum told in one piece is then unknown.
        """
        if self._generate.reasoning == "keep":
            return hypothesis, None
        if not (cut := self._cut(hypothesis.token_ids.tolist())):
            return hypothesis, None
        logprobs, tops = hypothesis.token_logprobs, hypothesis.topk_ids
        heights, drawn = hypothesis.topk_logprobs, hypothesis.drawn
        kept = replace(
            hypothesis,
            token_ids=hypothesis.token_ids[cut:],
            token_logprobs=None if logprobs is None else logprobs[cut:],
            topk_ids=None if tops is None else tops[cut:],
            topk_logprobs=None if heights is None else heights[cut:],
            told_sum=None,
            drawn=None if drawn is None else drawn.after(cut),
        )
        return kept, hypothesis.token_ids[:cut]

    def texts(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """The text of each target: no special tokens, and nothing from a stop string on."""
        return [self._before_stop(text) for text in decode_targets(self._tokenizer, sequences)]

    def reasoning(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """The text of each span cut off, special tokens left out."""
        return decode_targets(self._tokenizer, sequences)

    def control_tokens(self, hypothesis: Hypothesis) -> int:
        """Special tokens inside a target, which its text leaves out: neither its start nor end."""
        ids = hypothesis.token_ids.tolist()
        if ids and hypothesis.finish_reason == "stop":
            ids.pop()
        return sum(i in self._special for i in ids) - (bool(ids) and self._starts_with(ids[0]))

    def _starts_with(self, token: int) -> bool:
        return token in self._starts and token in self._special

    def _before_stop(self, text: str) -> str:
        ends = [at for stop in self._generate.stop if (at := text.find(stop)) >= 0]
        return text[: min(ends, default=len(text))]

    def _cut(self, ids: Sequence[int]) -> int:
        """How many tokens to cut. Found in their text: `</think>` may share a token with blanks."""
        end = self._generate.reasoning_end
        ends = self._whole_text(ids).count(end)
        if not ends:
            return 0
        # The fewest tokens that hold every end: characters may be spread over several tokens.
        prefixes = range(len(ids) + 1)
        cut = bisect_left(prefixes, ends, key=lambda n: self._whole_text(ids[:n]).count(end))
        if self._whole_text(ids[:cut]).rpartition(end)[2].strip():
            return 0
        while cut < len(ids) and not self._whole_text(ids[cut : cut + 1]).strip():
            cut += 1
        return cut

    def _whole_text(self, ids: Sequence[int]) -> str:
        """The text of some tokens, special ones spelled out."""
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text
