"""What a student is built as, known without a weight: its configuration, and its teacher's layers.

A student is a new configuration, a checkpoint's, or its teacher's with fewer layers and narrower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from factory.errors import ManifestError, nearest
from factory.manifest import Manifest
from factory.prompting.tokenizing import load_tokenizer
from factory.training import FromTeacher, Init

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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
ENCODER_LAYER_KEYS = ("encoder_layers", "num_layers")
DECODER_LAYER_KEYS = ("decoder_layers", "num_decoder_layers")
COUNTED = frozenset({*LAYER_KEYS, *ENCODER_LAYER_KEYS, *DECODER_LAYER_KEYS})
PER_LAYER_KEYS = ("layer_types", "no_rope_layers", "mlp_layer_types")
HEADS = ("num_attention_heads", "decoder_attention_heads")
INIT = "student.init"
FROM = f"{INIT}.from_teacher"


@dataclass(frozen=True, slots=True)
class Cut:
    """A student's configuration, and the layers of its teacher that it takes over, in order.

    Of an encoder–decoder `layers` are its decoder's; `encoder_layers` are empty without an encoder.
    """

    config: Any
    layers: tuple[int, ...]
    encoder_layers: tuple[int, ...] = ()


def spaced_layers(teacher: int, student: int, place: str = f"{FROM}.layers") -> tuple[int, ...]:
    """Which of the teacher's layers a student of so many layers takes over.

    The authors' tables where they have the pair, else round(i·(L−1)/(n−1)), the first for n = 1.

    Raises:
        ManifestError: more layers are asked for than the teacher has.
    """
    if student > teacher:
        remedy = f"the teacher has {teacher} layers: take at most as many"
        raise ManifestError(place, student, remedy)
    if student == teacher:
        return tuple(range(teacher))
    if found := SPACED.get(teacher, {}).get(student):
        return found
    if student == 1:
        return (0,)
    return tuple(round(i * (teacher - 1) / (student - 1)) for i in range(student))


def chosen_layers(
    teacher: int, asked: int | Sequence[int] | None, place: str = f"{FROM}.layers"
) -> tuple[int, ...]:
    """The layers asked for: all of them, so many spaced ones, or those of these numbers.

    Raises:
        ManifestError: the teacher has not as many, or none of that number.
    """
    if asked is None:
        return tuple(range(teacher))
    if isinstance(asked, int):
        return spaced_layers(teacher, asked, place)
    if beyond := [number for number in asked if number >= teacher]:
        remedy = f"is no layer of the teacher's {teacher}: they are numbered from 0"
        raise ManifestError(place, beyond[0], remedy)
    return tuple(asked)


def cut(teacher: Any, asked: FromTeacher) -> Cut:
    """What is left of a teacher's configuration, which stays as it is.

    Raises:
        ManifestError: layers that the teacher has not, or a configuration that no student cut
            from this teacher can have.
    """
    config = _narrowed(teacher, asked.config)
    if not config.is_encoder_decoder:
        if asked.encoder_layers is not None:
            remedy = f"a {config.model_type} has no encoder: remove it"
            raise ManifestError(f"{FROM}.encoder_layers", asked.encoder_layers, remedy)
        layers = _set_layers(config, LAYER_KEYS, asked.layers, f"{FROM}.layers")
        for listed in PER_LAYER_KEYS:
            if getattr(config, listed, None):
                setattr(config, listed, [getattr(config, listed)[i] for i in layers])
        return Cut(config, layers)
    place = f"{FROM}.encoder_layers"
    encoder = _set_layers(config, ENCODER_LAYER_KEYS, asked.encoder_layers, place)
    return Cut(
        config, _set_layers(config, DECODER_LAYER_KEYS, asked.layers, f"{FROM}.layers"), encoder
    )


def new_config(given: dict[str, Any], **ids: int | None) -> Any:
    """A configuration as the manifest gives it; `ids` of special tokens, and a `vocab_size`.

    Raises:
        ManifestError: transformers refuses it.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    fields = {"vocab_size": ids.pop("vocab_size", None)} | given | ids
    model_type = fields.pop("model_type")
    try:
        config = AutoConfig.for_model(model_type, **fields)
    except (ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise _refused(f"{INIT}.config", model_type, error) from None
    if config.is_encoder_decoder and config.decoder_start_token_id is None:
        config.decoder_start_token_id = fields.get("pad_token_id")
    return config


def read_config(model: str, revision: str | None, place: str) -> Any:
    """A stored model's configuration.

    Raises:
        ManifestError: it cannot be loaded.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model, revision=revision)
    except (OSError, ValueError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ManifestError(place, model, f"cannot be loaded: {reason}") from None


def model_class(config: Any) -> Any:
    """The class of transformers that builds and loads a model of this configuration."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def count_parameters(config: Any) -> int:
    """Parameters of a model of this configuration, tied ones counted once; none is allocated."""
    import torch

    with torch.device("meta"):
        model = model_class(config).from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def check_start(manifest: Manifest, teachers: PreTrainedTokenizerFast | None) -> Any:
    """The configuration that a manifest's student will have, or None where it has no student.

    `teachers` is the teacher's tokenizer. Where the student's is yet to be trained, it is taken to
    be as large as it may get.

    Raises:
        ManifestError: the student cannot start so, whatever the data.
        PromptError: the student's tokenizer cannot be loaded.
    """
    if manifest.student is None:
        return None
    init = manifest.student.init
    tokenizer = start_tokenizer(init, teachers)
    train = init.tokenizer.train if init.tokenizer else None
    size = len(tokenizer) if tokenizer else train.vocab_size if train else None
    config = _config(manifest, init, size)
    _require_text_model(config, init)
    known = config.get_text_config().vocab_size
    if tokenizer is not None and known < len(tokenizer):
        remedy = f"the model knows {known} tokens, the tokenizer {len(tokenizer)}: make them one"
        raise ManifestError(INIT, None, remedy)
    _require_first_token(manifest.generate.first_token, init, tokenizer)
    return config


def larger_than_teacher(manifest: Manifest, parameters: int) -> str | None:
    """A warning where a student of so many parameters is larger than its teacher."""
    teacher = manifest.teacher
    if teacher is None:
        return None
    limit = count_parameters(read_config(teacher.model, teacher.revision, "teacher.model"))
    if parameters <= limit:
        return None
    return f"the student has {parameters:,} parameters, its teacher {limit:,}"


def _config(manifest: Manifest, init: Init, size: int | None) -> Any:
    if init.config is not None:
        return new_config(init.config, vocab_size=size)
    if init.model is not None:
        return read_config(init.model, None, f"{INIT}.model")
    teacher = manifest.teacher
    if teacher is None or init.from_teacher is None:
        raise ManifestError(FROM, None, "needs a teacher: name one")
    whole = read_config(teacher.model, teacher.revision, "teacher.model")
    config = cut(whole, init.from_teacher).config
    if init.tokenizer and "vocab_size" not in init.from_teacher.config:
        config.get_text_config().vocab_size = size
    return config


def start_tokenizer(
    init: Init, teachers: PreTrainedTokenizerFast | None
) -> PreTrainedTokenizerFast | None:
    """The student's tokenizer, or None where it is to be trained.

    Raises:
        ManifestError: there is nothing to take one from.
        PromptError: it cannot be loaded.
    """
    if init.tokenizer and init.tokenizer.train:
        return None
    named = (init.tokenizer.model if init.tokenizer else None) or init.model
    if named is None and teachers is None:
        remedy = "no teacher to take a tokenizer from: add tokenizer: {train: {vocab_size: …}}"
        raise ManifestError(INIT, None, remedy)
    return load_tokenizer(named) if named else teachers


def _require_first_token(
    first: str | None, init: Init, tokenizer: PreTrainedTokenizerFast | None
) -> None:
    """What every target begins with must be a token of the student's too."""
    train = init.tokenizer.train if init.tokenizer else None
    known = tokenizer.get_vocab() if tokenizer else train.special_tokens if train else ()
    if first is not None and first not in known:
        remedy = "is no token of the student's: add it to student.init.tokenizer's special tokens"
        raise ManifestError("generate.first_token", first, remedy)


def _require_text_model(config: Any, init: Init) -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

    encoder_decoder = config.is_encoder_decoder
    known = (
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING
    )
    if type(config) not in known:
        place = f"{INIT}.config" if init.config else f"{INIT}.model" if init.model else FROM
        raise ManifestError(place, config.model_type, "writes no text: take a language model")


def _narrowed(teacher: Any, given: dict[str, Any]) -> Any:
    """The teacher's configuration with other widths, its heads as they are."""
    from huggingface_hub.errors import StrictDataclassError

    place, tree = f"{FROM}.config", teacher.to_dict()
    fields = {teacher.attribute_map.get(key, key): value for key, value in given.items()}
    _require_alike(fields, teacher, tree)
    try:
        config = type(teacher).from_dict(tree | fields)
    except (ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise _refused(place, given, error) from None
    if given and (found := _heads(config)) != (wanted := _heads(teacher)):
        remedy = (
            f"its heads would be {_told(found)}, and the teacher's are {_told(wanted)}: a head is "
            "taken whole or not at all: change their number with hidden_size"
        )
        raise ManifestError(place, given, remedy)
    return config


def _require_alike(fields: dict[str, Any], teacher: Any, tree: dict[str, Any]) -> None:
    place = f"{FROM}.config"
    if fields.get("model_type", teacher.model_type) != teacher.model_type:
        remedy = f"the teacher is a {teacher.model_type}, and a student cut from it is one too"
        raise ManifestError(f"{place}.model_type", fields["model_type"], f"{remedy}: leave it out")
    for key, value in fields.items():
        if key in COUNTED:
            raise ManifestError(f"{place}.{key}", value, "is what from_teacher.layers says: say it")
        if key not in tree:
            raise ManifestError(f"{place}.{key}", value, f"unknown key: {nearest(key, tree)}")


def _heads(config: Any) -> tuple[tuple[int, int], ...]:
    """Of each kind of attention: how wide a head is, and how many share one's keys and values."""
    text = config.get_text_config()
    numbers = [number for key in HEADS if (number := getattr(text, key, None))]
    width = getattr(text, "head_dim", None)
    shared = getattr(text, "num_key_value_heads", None)
    return tuple((width or text.hidden_size // n, n // (shared or n)) for n in numbers)


def _told(heads: tuple[tuple[int, int], ...]) -> str:
    width, share = heads[0]
    return f"{width} wide" + (f", {share} to a key" if share > 1 else "")


def _set_layers(
    config: Any, keys: Sequence[str], asked: int | Sequence[int] | None, place: str
) -> tuple[int, ...]:
    key = next((key for key in keys if key in config.to_dict()), None)
    if key is None:
        remedy = f"cannot tell the layers of a {config.model_type}: start from config or model"
        raise ManifestError(FROM, None, remedy)
    layers = chosen_layers(getattr(config, key), asked, place)
    setattr(config, key, len(layers))
    return layers


def _refused(place: str, value: object, error: Exception) -> ManifestError:
    reason = " ".join(str(error).split())[:200]
    return ManifestError(place, value, f"is refused: {reason}")
