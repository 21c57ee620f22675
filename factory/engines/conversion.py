"""A model in CTranslate2's format: converted once, complete or absent, and named token by token.

CTranslate2 speaks of tokens as strings, and its converter takes them from a tokenizer, where two
ids may share a string and an unknown token may be missing. Here the strings are the ids themselves,
so that nothing can be mistaken, and no tokenizer is asked.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from factory.errors import EngineError
from factory.files import read_json, write_json
from factory.models import ModelFacts, model_folder

RECORD = "record.json"
VOCABULARIES = ("vocabulary.json", "shared_vocabulary.json")
# The converter drops Marian's last embedding, which is never produced, if it has this name.
PAD = "<pad>"
NAMING = ("bos_token", "eos_token", "unk_token", "decoder_start_token")  # keys of its config.json
PROBE_TOKENS = 24
REFUSALS = (OSError, ValueError, KeyError, AttributeError, NotImplementedError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Probe:
    """Twelve ids after twelve ids, and the log-probabilities that the original gives them."""

    source: list[int]
    target: list[int]
    logprobs: list[float]
    precise: bool


@dataclass(frozen=True, slots=True)
class Converted:
    """A converted model.

    Attributes:
        names: of every id, its token; `names[i]` stands for id i.
        end_ids: the model's own end tokens.
        forced_id: the first token that the model's generation configuration forces, if any.
        probe: what the original says, to check the copy by.
    """

    folder: Path
    names: list[str]
    end_ids: list[int]
    forced_id: int | None
    probe: Probe


def converted(converter: Any, version: str, facts: ModelFacts, kind: str, cache: Path) -> Converted:
    """The model in CTranslate2's format, from the cache or put there.

    Of several processes one converts and the others wait; a conversion that is killed leaves
    nothing under the final name.

    Args:
        converter: `ctranslate2.converters.TransformersConverter`.
        version: of ctranslate2.
        facts: of the original.
        kind: how the weights are stored, such as `float32` or `int8`.
        cache: a folder for converted models; made if it is not there.

    Raises:
        EngineError: the converter does not know the architecture, or cannot read the model.
    """
    folder = cache / f"{facts.fingerprint}-{kind}-{version}"
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(cache / f"{folder.name}.lock"):
        if not (folder / RECORD).is_file():
            building = folder.with_name(f"{folder.name}.building")
            for leftover in (building, folder):
                shutil.rmtree(leftover, ignore_errors=True)
            told = _convert(converter, facts, kind, building)
            named = {"fingerprint": facts.fingerprint, "compute_type": kind, "ctranslate2": version}
            write_json(building / RECORD, named | told)
            _sync(building)
            os.replace(building, folder)
    return _read(folder)


def rename_tokens(folder: Path, tokens: Sequence[str]) -> None:
    """Have a converted model, read by its `Converted`, name token i `tokens[i]` from now on.

    A tokenizer's own names are what people who use CTranslate2 hand it.
    """
    path = next(folder / name for name in VOCABULARIES if (folder / name).is_file())
    old, config = read_json(path), read_json(folder / "config.json")
    new = dict(zip(old, tokens, strict=False))
    named = {key: new.get(config[key], config[key]) for key in NAMING if key in config}
    write_json(path, [new[name] for name in old])
    write_json(folder / "config.json", config | named)


def _read(folder: Path) -> Converted:
    record = read_json(folder / RECORD)
    vocabulary = next(folder / name for name in VOCABULARIES if (folder / name).is_file())
    return Converted(
        folder=folder,
        names=read_json(vocabulary),
        end_ids=record["end_ids"],
        forced_id=record["forced_id"],
        probe=Probe(**record["probe"]),
    )


def _convert(converter: Any, facts: ModelFacts, kind: str, building: Path) -> dict[str, Any]:
    """Write the converted model; returns what the record tells of the original."""
    from transformers import AutoConfig

    told: dict[str, Any] = {}
    try:
        source = model_folder(facts.model, facts.revision, "teacher.model")
        # What transformers does not know, the converter would read by code of its own, unsafely.
        AutoConfig.from_pretrained(source)
        conversion = converter(str(source))
        conversion.load_model = partial(_load_model, facts, told)
        conversion._load = partial(_with_head_widths, conversion._load, told)
        conversion.load_tokenizer = lambda *_, **__: _Names(facts.vocab_size, told)
        conversion.convert(str(building), quantization=kind)
    except REFUSALS as error:
        reason = " ".join(str(error).partition(" (supported")[0].split())[:200]
        remedy = f"CTranslate2 cannot convert it: {reason}; use engine transformers or vllm"
        raise EngineError("teacher.model", facts.model, remedy) from None
    _set_start(building, told)
    return {key: told[key] for key in ("end_ids", "forced_id", "probe")}


def _load_model(
    facts: ModelFacts, told: dict[str, Any], model_class: Any, name: str, **kwargs: Any
) -> Any:
    """Load the original, from safetensors alone, and note what it says of itself."""
    model = model_class.from_pretrained(name, use_safetensors=True, **kwargs).eval()
    if not model.can_generate():
        raise ValueError("it generates no text")
    generation, config = model.generation_config, model.config
    ends = generation.eos_token_id if generation.eos_token_id is not None else config.eos_token_id
    if ends is None:
        raise ValueError("it names no end token (eos_token_id)")
    told["end_ids"] = ends if isinstance(ends, list) else [ends]
    told["pad_id"] = getattr(config, "pad_token_id", None)
    told["forced_id"] = getattr(generation, "forced_bos_token_id", None)
    told["start_id"] = generation.decoder_start_token_id
    if facts.encoder_decoder:
        config.decoder_start_token_id = told["start_id"]
    told["head_width"] = getattr(config.get_text_config(), "head_dim", None)
    _tell_shape(model)
    told["probe"] = _probe(model, facts, told)
    return model


def _tell_shape(model: Any) -> None:
    """Tell in the configuration what the converter reads there and transformers 5 does not."""
    config = model.config
    # T5: embeddings are always tied now, and whether outputs are scaled has a key of its own.
    if hasattr(config, "scale_decoder_outputs"):
        config.tie_word_embeddings = config.scale_decoder_outputs
    # BART and its kin: where they normalise shows in their modules alone.
    if encoder := getattr(model.base_model, "encoder", None):
        config.normalize_before = hasattr(encoder, "layer_norm")
        config.normalize_embedding = hasattr(encoder, "layernorm_embedding")


def _with_head_widths(load: Any, told: dict[str, Any]) -> Any:
    """The specification, with the width of a decoder's heads where its loader forgets it (Llama).

    Left out it is taken for width / heads, and attention is scaled by a wrong root.
    """
    spec = load()
    for layer in getattr(spec.decoder, "layer", ()) if told["head_width"] else ():
        vars(layer.self_attention).setdefault("head_dim", np.int32(told["head_width"]))
    return spec


def _probe(model: Any, facts: ModelFacts, told: dict[str, Any]) -> dict[str, Any]:
    """Log-probabilities of a fixed target, by the original; Marian's pad is dropped in the copy."""
    import torch

    spread = np.linspace(4, facts.vocab_size - 2, PROBE_TOKENS).astype(int).tolist()
    ids = [token if token != told["pad_id"] else token - 1 for token in spread]
    source, target = ids[: PROBE_TOKENS // 2], ids[PROBE_TOKENS // 2 :]
    with torch.inference_mode():
        if facts.encoder_decoder:
            start = torch.tensor([[told["start_id"], *target[:-1]]])
            out = model(input_ids=torch.tensor([source]), decoder_input_ids=start)
        else:
            out = model(input_ids=torch.tensor([source + target[:-1]]))
    logits = out.logits[0, -len(target) :].double()
    if facts.model_type == "marian":
        logits[:, told["pad_id"]] = -torch.inf
    rows = logits.log_softmax(-1)
    logprobs = rows.gather(-1, torch.tensor(target)[:, None])[:, 0].tolist()
    precise = model.dtype == torch.float32
    return {"source": source, "target": target, "logprobs": logprobs, "precise": precise}


def _set_start(building: Path, told: dict[str, Any]) -> None:
    """Have the decoder start as the generation configuration says, whatever the converter chose.

    Marian's start token was dropped, since its decoder starts from a zero embedding.
    """
    config = read_json(building / "config.json")
    name = PAD if told["start_id"] == told["pad_id"] else str(told["start_id"])
    vocabulary = building / "shared_vocabulary.json"
    if "decoder_start_token" in config and name in read_json(vocabulary):
        write_json(building / "config.json", config | {"decoder_start_token": name})


class _Names:
    """What the converter asks of a tokenizer, answered by ids in decimal."""

    special_tokens_map: dict[str, list[str]]

    def __init__(self, size: int, told: dict[str, Any]) -> None:
        self._names = [str(token) for token in range(size)]
        self.special_tokens_map = {}
        if told["pad_id"] is not None:
            self._names[told["pad_id"]] = PAD
        self.eos_token = self._names[told["end_ids"][0]]
        # Asked for, and never used: ids beyond the vocabulary are refused before.
        self.unk_token = self.bos_token = self.pad_token = self.eos_token
        self.unk_token_id = told["end_ids"][0]

    def get_vocab(self) -> dict[str, int]:
        """Id of every name."""
        return {name: token for token, name in enumerate(self._names)}

    def convert_ids_to_tokens(self, token: int | None) -> str:
        """Name of an id; the first end token's where there is none."""
        return self.eos_token if token is None else self._names[token]


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold a lock file: other processes wait; it is let go even when the process is killed."""
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _sync(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
