"""Log-probabilities out of vLLM as the arrays that its engine core sends.

vLLM makes a Python object of every value: four lists, or a dictionary, a position. Two methods of
its `LogprobsProcessor` do so, and here are two others in their place, that keep rows of arrays.
They are private: so they are taken over only where, tried out, they tell what vLLM's own tell.
vLLM is not imported here: what is needed of it is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

VALUE = 4  # bytes, of an id and of a log-probability
Method = Callable[[Any, Any], None]
Rows = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]

# From the first, and before the second. Run with 0.32 alone: the trial judges the others.
VERSIONS = ((0, 25), (0, 34))
REPLACED = "replaced_of_vllm"
# What is raised where names or shapes are others.
UNLIKE = (AttributeError, IndexError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Names:
    """What is private of a vLLM.

    Attributes:
        version: its first two numbers.
        processor: `LogprobsProcessor`; its two methods are replaced.
        flat: `FlatLogprobs`.
        lists, tensors: what the core sends of new tokens, and of prompts.
    """

    version: tuple[int, int]
    processor: Any
    flat: Any
    lists: Any
    tensors: Any


class Arrays:
    """One request's positions, rows of k + 1: the realised token first, then the top k.

    Stands in for a `FlatLogprobs`: positions are counted and sliced, and columns come flat.
    """

    __slots__ = ("_ids", "_logprobs", "_width")

    def __init__(self) -> None:
        self._ids, self._logprobs, self._width = bytearray(), bytearray(), 1

    def add(self, ids: Any, logprobs: Any, k: int) -> None:
        """Copy rows [n, at least k + 1]; others of the batch may have asked for more columns.

        What is sent are views of the whole batch's arrays, which must not be kept alive by them.
        """
        self._width = width = ids.shape[1] if k < 0 else k + 1
        self._ids += np.asarray(ids, np.int32)[:, :width].tobytes()
        self._logprobs += np.asarray(logprobs, np.float32)[:, :width].tobytes()

    def __len__(self) -> int:
        return len(self._ids) // (VALUE * self._width)

    def __getitem__(self, positions: slice) -> Arrays:
        first, last, _ = positions.indices(len(self))
        part, held = Arrays(), slice(first * VALUE * self._width, last * VALUE * self._width)
        part._ids, part._logprobs, part._width = self._ids[held], self._logprobs[held], self._width
        return part

    @property
    def token_ids(self) -> list[int]:
        """Position by position, as `FlatLogprobs` has them."""
        ids: list[int] = np.frombuffer(self._ids, np.int32).tolist()
        return ids

    @property
    def logprobs(self) -> list[float]:
        """Position by position, as `FlatLogprobs` has them."""
        logprobs: list[float] = np.frombuffer(self._logprobs, np.float32).tolist()
        return logprobs

    def rows(self, k: int) -> Rows:
        """int32 and float32 [n, k + 1]."""
        ids = np.frombuffer(self._ids, np.int32).reshape(-1, k + 1)
        return ids, np.frombuffer(self._logprobs, np.float32).reshape(-1, k + 1)


def rows(told: Any, k: int) -> Rows:
    """int32 and float32 [n, k + 1], of what a request tells in either form."""
    if isinstance(told, Arrays):
        return told.rows(k)
    ids = np.asarray(told.token_ids, np.int32).reshape(-1, k + 1)
    return ids, np.asarray(told.logprobs, np.float32).reshape(-1, k + 1)


def take_over(names: Names) -> str | None:
    """Have vLLM keep arrays, in this process from now on; requests for dictionaries get those.

    Returns:
        why not, where it cannot be done: flat lists are told as before.
    """
    low, high = VERSIONS
    if not low <= names.version < high:
        return f"vLLM {'.'.join(map(str, names.version))} may have changed"
    try:
        own = [getattr(names.processor, name) for name in METHODS]
        if all(hasattr(method, REPLACED) for method in own):
            return None
        ours = [
            make(method, names.flat) for method, make in zip(own, METHODS.values(), strict=True)
        ]
        if _tried(names, own) != _tried(names, ours):
            return "what its core sends is not what it was"
    except UNLIKE as error:
        return " ".join(str(error).split())
    for name, method in zip(METHODS, ours, strict=True):
        put(names, name, method)
    return None


def put(names: Names, name: str, method: Method) -> None:
    """Put a method in the place of vLLM's own, which it remembers."""
    vars(method)[REPLACED] = getattr(names.processor, name)
    setattr(names.processor, name, method)


def hand_back(names: Names) -> None:
    """Let vLLM make its own objects again."""
    for name in METHODS:
        method = getattr(names.processor, name)
        setattr(names.processor, name, getattr(method, REPLACED, method))


def _sample(own: Method, flat: Any) -> Method:
    def update(processor: Any, sent: Any) -> None:
        if not isinstance(processor.logprobs, Arrays | flat):
            own(processor, sent)
            return
        ids, logprobs = sent[:2]
        processor.logprobs = _kept(processor.logprobs, ids, logprobs, processor.num_logprobs)
        for realised in logprobs[:, 0].tolist():
            processor.cumulative_logprob += realised

    return update


def _prompt(own: Method, flat: Any) -> Method:
    def update(processor: Any, sent: Any) -> None:
        if not isinstance(processor.prompt_logprobs, Arrays | flat):
            own(processor, sent)
            return
        ids, logprobs = sent[0].numpy(), sent[1].numpy()
        before, k = processor.prompt_logprobs, processor.num_prompt_logprobs
        processor.prompt_logprobs = _kept(before, ids, logprobs, k)

    return update


METHODS = {"_update_sample_logprobs": _sample, "_update_prompt_logprobs": _prompt}


def _kept(before: Any, ids: Any, logprobs: Any, k: int) -> Arrays:
    arrays = before if isinstance(before, Arrays) else Arrays()
    arrays.add(ids, logprobs, k)
    return arrays


def _tried(names: Names, methods: Sequence[Method]) -> list[Any]:
    """What two methods make of two positions of three columns, of which two were asked for."""
    import torch

    ids = np.array([[7, 5, 7, 3], [1, 1, 0, 2]], np.int32)
    logprobs = -np.arange(1, 9, dtype=np.float32).reshape(2, 4) / 7
    ranks = np.array([2, 1], np.int32)
    told = names.processor(
        tokenizer=None,
        logprobs=names.flat(),
        prompt_logprobs=names.flat(),
        cumulative_logprob=0.0,
        num_logprobs=2,
        num_prompt_logprobs=2,
    )
    sample, prompt = methods
    for _ in range(2):
        sample(told, names.lists(ids, logprobs, ranks))
        prompt(told, names.tensors(*map(torch.from_numpy, (ids, logprobs, ranks))))
    arrays = (*rows(told.logprobs, 2), *rows(told.prompt_logprobs, 2))
    return [told.cumulative_logprob, *(array.tolist() for array in arrays)]
