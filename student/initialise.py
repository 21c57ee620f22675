"""What a student starts as: a random configuration, a checkpoint, or layers of its teacher."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from factory.errors import ManifestError, RunError
from factory.manifest import Manifest
from factory.training import Student

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# Shleifer & Rush 2020 (arXiv 2010.13002), tables of the authors' code: first and last are kept.
SPACED = {
    6: {1: (0,), 2: (0, 5), 3: (0, 2, 5), 4: (0, 1, 3, 5)},
    12: {
        1: (0,),
        2: (0, 6),
        3: (0, 6, 11),
        4: (0, 4, 8, 11),
        6: (0, 2, 4, 7, 9, 11),
        9: (0, 1, 2, 4, 5, 7, 9, 10, 11),
    },
    16: {
        2: (0, 15),
        3: (0, 8, 15),
        4: (0, 5, 10, 15),
        6: (0, 3, 6, 9, 12, 15),
        8: (0, 2, 4, 6, 8, 10, 12, 15),
    },
}
LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
DECODER_LAYER_KEYS = ("decoder_layers", "num_decoder_layers")
PER_LAYER_KEYS = ("layer_types", "no_rope_layers", "mlp_layer_types")
NUMBERED_LAYER = re.compile(r"(?<=\.)(?:layers|h|blocks?)\.(\d+)(?=\.)")


@dataclass(frozen=True, slots=True)
class Initialised:
    """A model to start from, and which of the teacher's layers it holds (none if it is new)."""

    model: PreTrainedModel
    copied_layers: tuple[int, ...] = ()


def spaced_layers(teacher: int, student: int) -> tuple[int, ...]:
    """Which of the teacher's layers a student of so many layers takes over.

    The authors' tables where they have the pair, else round(i·(L−1)/(n−1)), the first for n = 1.

    Raises:
        ManifestError: more layers are asked for than the teacher has.
    """
    if student > teacher:
        remedy = f"the teacher has {teacher} layers: take at most as many"
        raise ManifestError("student.init.from_teacher.layers", student, remedy)
    if student == teacher:
        return tuple(range(teacher))
    if found := SPACED.get(teacher, {}).get(student):
        return found
    if student == 1:
        return (0,)
    return tuple(round(i * (teacher - 1) / (student - 1)) for i in range(student))


def initialise(
    manifest: Manifest, student: Student, tokenizer: PreTrainedTokenizerFast
) -> Initialised:
    """Build the student in float32 on the CPU, from a configuration, a checkpoint or the teacher.

    Raises:
        ManifestError: the configuration is refused, or the teacher has too few layers.
        RunError: a model cannot be loaded, or its vocabulary is too small for the tokenizer.
    """
    torch.manual_seed(manifest.seed)
    init = student.init
    if init.config is not None:
        done = Initialised(_from_config(init.config, tokenizer))
    elif init.model is not None:
        done = Initialised(load(init.model, None))
    else:
        done = _from_teacher(manifest, student)
    _agree(done.model, tokenizer)
    return done


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a model and its tokenizer as a Hugging Face folder, weights as safetensors."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def count_parameters(model: torch.nn.Module) -> int:
    """Parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def parameters_of(model: str, revision: str | None) -> int:
    """Parameters of a stored model, from its configuration alone."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, revision=revision)
    with torch.device("meta"):
        return count_parameters(_auto(config).from_config(config))


def load(model: str, revision: str | None = None) -> PreTrainedModel:
    """Load a stored model in float32, from safetensors alone.

    Raises:
        RunError: it cannot be loaded.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model, revision=revision)
        return _auto(config).from_pretrained(
            model, revision=revision, dtype=torch.float32, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError("student.init", model, f"cannot be loaded: {reason}") from None


def _from_config(given: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    from transformers import AutoConfig

    fields = dict(given)
    model_type = fields.pop("model_type")
    fields |= _token_ids(tokenizer)
    fields.setdefault("vocab_size", len(tokenizer))
    try:
        config = AutoConfig.for_model(model_type, **fields)
        if config.is_encoder_decoder and config.decoder_start_token_id is None:
            config.decoder_start_token_id = tokenizer.pad_token_id
        return _auto(config).from_config(config, dtype=torch.float32)
    except (ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ManifestError("student.init.config", model_type, f"is refused: {reason}") from None


def _from_teacher(manifest: Manifest, student: Student) -> Initialised:
    """Spaced layers of the teacher; embeddings and head whole. An encoder stays whole too."""
    if manifest.teacher is None or student.init.from_teacher is None:
        raise RunError("student.init.from_teacher", None, "needs a teacher: name one")
    teacher = load(manifest.teacher.model, manifest.teacher.revision)
    config = teacher.config.__class__.from_dict(teacher.config.to_dict())
    key = _layers_key(config)
    layers = spaced_layers(getattr(config, key), student.init.from_teacher.layers)
    for listed in PER_LAYER_KEYS:
        if getattr(config, listed, None):
            setattr(config, listed, [getattr(config, listed)[i] for i in layers])
    setattr(config, key, len(layers))
    cut = _auto(config).from_config(config, dtype=torch.float32)
    cut.load_state_dict(_kept(teacher.state_dict(), layers, config.is_encoder_decoder))
    cut.generation_config = teacher.generation_config
    return Initialised(cut, layers)


def _kept(
    state: dict[str, torch.Tensor], layers: tuple[int, ...], encoder_decoder: bool
) -> dict[str, torch.Tensor]:
    """The weights of the kept layers under their new numbers, and all that has no layer."""
    new = {old: str(index) for index, old in enumerate(layers)}
    kept = {}
    for name, value in state.items():
        whole = encoder_decoder and "decoder." not in name
        found = None if whole else NUMBERED_LAYER.search(name)
        if found is None:
            kept[name] = value
        elif int(found[1]) in new:
            kept[name[: found.start(1)] + new[int(found[1])] + name[found.end(1) :]] = value
    return kept


def _layers_key(config: Any) -> str:
    keys = DECODER_LAYER_KEYS if config.is_encoder_decoder else LAYER_KEYS
    found = next((key for key in keys if key in config.to_dict()), None)
    if found is None:
        remedy = f"cannot tell the layers of a {config.model_type}: start from config or model"
        raise ManifestError("student.init.from_teacher", None, remedy)
    return found


def _auto(config: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    return {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _agree(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """The head must reach every token, and generation must stop at the tokenizer's end token."""
    size = model.config.get_text_config().vocab_size
    if size < len(tokenizer):
        remedy = f"the model knows {size} tokens, the tokenizer {len(tokenizer)}: make them one"
        raise RunError("student.init", None, remedy)
    for name, value in _token_ids(tokenizer).items():
        if value is not None:
            setattr(model.generation_config, name, value)
