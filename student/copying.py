"""What a student's tensors take over from its teacher's, and the record of it.

A layer comes whole, under its new number. Where the student is narrower, its tensor takes the
leading part of the teacher's in every dimension, so that the same units, heads and hidden
dimensions are kept in all tensors (weight selection, Xu et al. 2023, arXiv 2311.18823; it spaces
them evenly, which would cut through heads and through the pairs of rotary positions). With another
tokenizer, the rows of the tokens that both have are taken over (Gee et al. 2022,
arXiv 2402.09977).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from factory.architecture import FROM, Cut
from factory.errors import ManifestError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

NUMBERED_LAYER = re.compile(r"(?<=\.)(?:layers?|h|blocks?)\.(\d+)(?=\.)")
ONE_FOR_ALL = "relative_attention_bias"  # T5 keeps it in its first layer, for all of them
THREE_IN_ONE = {"gpt2": "c_attn"}  # query, key and value side by side, along the last dimension
INTERWOVEN = re.compile(r"\.(c_attn|qkv_proj|query_key_value|Wqkv|in_proj|gate_up_proj)(\.|$)")


@dataclass(frozen=True, slots=True)
class Copy:
    """One tensor's origin.

    Attributes:
        teacher: the name of the teacher's tensor.
        shape: of the leading part that was copied; its whole shape if all of it was.
        rows: whether its rows are those of the tokens that both vocabularies have.
        parts: how many blocks side by side were copied so, each its leading part.
    """

    teacher: str
    shape: list[int]
    rows: bool = False
    parts: int = 1


@dataclass(frozen=True, slots=True)
class SharedTokens:
    """Ids of the tokens that two vocabularies share, int64 [n] each: the student's, the teacher's.

    Tokens are one if they are written alike, control tokens if they do the same.
    """

    student: Tensor
    teacher: Tensor

    @classmethod
    def of(cls, student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast) -> SharedTokens:
        """The tokens shared by two tokenizers."""
        old, new = teacher.get_vocab(), student.get_vocab()
        pairs = {new[token]: old[token] for token in new.keys() & old.keys()}
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            ours, theirs = getattr(student, name), getattr(teacher, name)
            if ours is not None and theirs is not None:
                pairs[ours] = theirs
        ours = torch.tensor(sorted(pairs), dtype=torch.int64)
        return cls(ours, torch.tensor([pairs[i] for i in sorted(pairs)], dtype=torch.int64))


def copy_weights(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    cut: Cut,
    tokens: SharedTokens | None = None,
) -> dict[str, Copy]:
    """Overwrite a student's tensors with what its teacher has of them, in place.

    `tokens` are given where the tokenizers differ. Copied in equal shapes alone is what is
    computed, not learned, such as sinusoidal positions, and what lies interwoven in one tensor.

    Returns:
        The origin of each tensor that was copied to, by the student's name; others are new.

    Raises:
        ManifestError: the teacher's tensors do not tell their layers.
    """
    theirs, ours = teacher.state_dict(), student.state_dict()
    _require_layers(theirs, cut)
    frozen = {n for n, p in student.named_parameters(remove_duplicate=False) if not p.requires_grad}
    vocabulary = _of_vocabulary(student, ours)
    done: dict[str, Copy] = {}
    for name, tensor in ours.items():
        origin = _origin(name, theirs, cut)
        if origin is None:
            continue
        source = theirs[origin]
        if tokens is not None and name in vocabulary:
            if tensor.dim() == 2 and vocabulary[name]:
                done[name] = _copy_rows(tensor, source, origin, tokens)
        elif tensor.shape == source.shape:
            tensor.copy_(source)
            done[name] = Copy(origin, list(tensor.shape))
        elif name not in frozen and (parts := _parts(name, student.config.model_type)):
            done[name] = _copy_leading(tensor, source, origin, parts)
    return done


def copied_parameters(student: PreTrainedModel, copies: dict[str, Copy]) -> int:
    """How many of a student's parameters are its teacher's, tied ones counted once."""
    sizes: dict[int, int] = {}
    parameters = student.named_parameters(remove_duplicate=False)
    for name, parameter in parameters:
        if name in copies:
            shape = torch.Size(copies[name].shape)
            sizes[parameter.data_ptr()] = shape.numel() * copies[name].parts
    return sum(sizes.values())


def _copy_rows(tensor: Tensor, source: Tensor, origin: str, tokens: SharedTokens) -> Copy:
    width = min(tensor.shape[1], source.shape[1])
    tensor[tokens.student, :width] = source[tokens.teacher, :width]
    return Copy(origin, [len(tokens.student), width], rows=True)


def _copy_leading(tensor: Tensor, source: Tensor, origin: str, parts: int) -> Copy:
    blocks = zip(tensor.chunk(parts, -1), source.chunk(parts, -1), strict=True)
    shape: list[int] = []
    for ours, theirs in blocks:
        shape = [min(a, b) for a, b in zip(ours.shape, theirs.shape, strict=True)]
        leading = tuple(slice(size) for size in shape)
        ours[leading] = theirs[leading]
    return Copy(origin, shape, parts=parts)


def _parts(name: str, model_type: str) -> int:
    """Blocks that lie side by side in a tensor; 0 where they cannot be told apart."""
    if not (found := INTERWOVEN.search(f".{name}")):
        return 1
    return 3 if THREE_IN_ONE.get(model_type) == found[1] else 0


def _origin(name: str, theirs: dict[str, Tensor], cut: Cut) -> str | None:
    """The teacher's name of a student's tensor, or None where it has none such."""
    found, layers = NUMBERED_LAYER.search(name), _layers(name, cut)
    if found is None or layers is None or ONE_FOR_ALL in name:
        return name if name in theirs else None
    moved = name[: found.start(1)] + str(layers[int(found[1])]) + name[found.end(1) :]
    return moved if moved in theirs else None


def _layers(name: str, cut: Cut) -> tuple[int, ...] | None:
    """The layers of the stack that a tensor is in, or None where it is in none."""
    if not cut.encoder_layers or "decoder." in name:
        return cut.layers
    return cut.encoder_layers if "encoder." in name else None


def _require_layers(theirs: dict[str, Tensor], cut: Cut) -> None:
    told: dict[tuple[int, ...], set[int]] = {cut.layers: set(), cut.encoder_layers: set()}
    for name in theirs:
        found, layers = NUMBERED_LAYER.search(name), _layers(name, cut)
        if found and layers:
            told[layers].add(int(found[1]))
    if not all(found.issuperset(layers) for layers, found in told.items()):
        remedy = "the names of the teacher's weights do not tell its layers: start from model"
        raise ManifestError(FROM, None, remedy)


def _of_vocabulary(student: Any, ours: dict[str, Tensor]) -> dict[str, bool]:
    """Tensors with an entry a token; False for those that are no embedding and no head."""
    heads = [student.get_input_embeddings(), student.get_output_embeddings()]
    places = {head.weight.data_ptr() for head in heads if head is not None}
    biases = {name: False for name in ours if name.endswith(("logits_bias", "lm_head.bias"))}
    return biases | {name: True for name, tensor in ours.items() if tensor.data_ptr() in places}
