"""What a student starts as: a random configuration, a checkpoint, or layers of its teacher."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from factory import architecture
from factory.architecture import FROM, cut, model_class, new_config, read_config
from factory.errors import ManifestError, RunError
from factory.manifest import Manifest
from factory.prompting.tokenizing import load_tokenizer, tokenizer_fingerprint
from factory.training import FromTeacher, Student
from student.copying import Copy, SharedTokens, copy_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# Ids in a configuration that mean a token by what it does.
CONTROLS = ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")


@dataclass(frozen=True, slots=True)
class Initialised:
    """A model to start from, and what of it is its teacher's (nothing if it is new)."""

    model: PreTrainedModel
    copied_layers: tuple[int, ...] = ()
    copied_encoder_layers: tuple[int, ...] = ()
    copies: dict[str, Copy] = field(default_factory=dict)

    def copied_as_record(self) -> dict[str, Any]:
        """Every tensor's origin, as `copied.json` keeps it."""
        tensors = {name: asdict(copy) for name, copy in self.copies.items()}
        new = [name for name in self.model.state_dict() if name not in tensors]
        layers, encoder = list(self.copied_layers), list(self.copied_encoder_layers)
        return {"layers": layers, "encoder_layers": encoder, "tensors": tensors, "new": new}


def initialise(
    manifest: Manifest, student: Student, tokenizer: PreTrainedTokenizerFast
) -> Initialised:
    """Build the student in float32 on the CPU, from a configuration, a checkpoint or the teacher.

    Raises:
        ManifestError: the configuration is refused, or the teacher has no such layers.
        RunError: a model cannot be loaded, or its vocabulary is too small for the tokenizer.
    """
    torch.manual_seed(manifest.seed)
    init = student.init
    if init.config is not None:
        done = Initialised(_from_config(init.config, tokenizer))
    elif init.from_teacher is None:
        done = Initialised(load(str(init.model)))
    else:
        done = _from_teacher(manifest, init.from_teacher, tokenizer)
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
    return architecture.count_parameters(read_config(model, revision, "model"))


def load(
    model: str,
    revision: str | None = None,
    place: str = "student.init",
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Load a stored model, from safetensors alone; `place` is where the manifest names it.

    Raises:
        RunError: it cannot be loaded.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model, revision=revision)
        return model_class(config).from_pretrained(
            model, revision=revision, dtype=dtype, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(place, model, f"cannot be loaded: {reason}") from None


def _from_config(given: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    config = new_config(given, vocab_size=len(tokenizer), **_token_ids(tokenizer))
    return _built(config, "student.init.config", config.model_type)


def _from_teacher(
    manifest: Manifest, asked: FromTeacher, tokenizer: PreTrainedTokenizerFast
) -> Initialised:
    """The layers and widths that were asked for; of another vocabulary the tokens both have."""
    if manifest.teacher is None:
        raise RunError(FROM, None, "needs a teacher: name one")
    teacher = load(manifest.teacher.model, manifest.teacher.revision)
    teachers = load_tokenizer(manifest.teacher.model, manifest.teacher.revision)
    same = tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(teachers)
    wanted = cut(teacher.config, asked)
    if not same:
        _speak(wanted.config, tokenizer, teachers, asked)
    model = _built(wanted.config, f"{FROM}.config", asked.config or None)
    tokens = None if same else SharedTokens.of(tokenizer, teachers)
    copies = copy_weights(teacher, model, wanted, tokens)
    if same:
        model.generation_config = teacher.generation_config
    return Initialised(model, wanted.layers, wanted.encoder_layers, copies)


def _speak(
    config: Any,
    tokenizer: PreTrainedTokenizerFast,
    teachers: PreTrainedTokenizerFast,
    asked: FromTeacher,
) -> None:
    """Let a configuration tell the size and the control tokens of another tokenizer."""
    text = config.get_text_config()
    if "vocab_size" not in asked.config:
        text.vocab_size = len(tokenizer)
    roles = {name: value for name, value in _token_ids(teachers).items() if value is not None}
    for name in CONTROLS:
        given = getattr(config, name, None)
        role = next((role for role, value in roles.items() if value == given), None)
        if given is not None:
            setattr(config, name, getattr(tokenizer, role) if role else None)
    if config.is_encoder_decoder and config.decoder_start_token_id is None:
        config.decoder_start_token_id = tokenizer.pad_token_id
    for name, value in _token_ids(tokenizer).items():
        setattr(text, name, value)


def _built(config: Any, place: str, value: object) -> PreTrainedModel:
    """A model of a configuration, in float32, its weights new."""
    try:
        return model_class(config).from_config(config, dtype=torch.float32)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ManifestError(place, value, f"is refused: {reason}") from None


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
