"""Which layers of a student learn the hidden states of which of its teacher's, and whether any can.

Told by configurations alone, so that `check` refuses what training would stumble over.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from factory.architecture import (
    DECODER_LAYER_KEYS,
    LAYER_KEYS,
    chosen_layers,
    model_class,
    read_config,
    start_tokenizer,
)
from factory.errors import ManifestError
from factory.manifest import Manifest
from factory.prompting.tokenizing import tokenizer_fingerprint
from factory.training import Init, Stage

if TYPE_CHECKING:
    from torch.nn import Module, ModuleList
    from transformers import PreTrainedTokenizerFast

# Names of the list that holds a model's layers; no part of its path is a number, for then it would
# be a list within a layer.
LAYER_LIST = re.compile(r"(?:[^.\d][^.]*\.)*(?:layers?|h|blocks?)")


def check_matching(manifest: Manifest, student: Any, teachers: PreTrainedTokenizerFast) -> None:
    """Refuse hidden-state matching that a manifest's models do not allow.

    Args:
        manifest: with a teacher.
        student: the configuration its student will have, None where it has no student.
        teachers: the teacher's tokenizer.

    Raises:
        ManifestError: naming the first stage that cannot be trained so.
    """
    stages = manifest.student.stages if manifest.student else ()
    taught = [stage for stage in stages if stage.objective.hidden]
    if not taught or manifest.teacher is None or manifest.student is None:
        return
    teacher = read_config(manifest.teacher.model, manifest.teacher.revision, "teacher.model")
    init = manifest.student.init
    tokenizer = start_tokenizer(init, teachers)
    same = tokenizer and tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(teachers)
    if not same:
        remedy = "needs the teacher's tokenizer, and the student has another: use ce alone"
        raise ManifestError(_place(taught[0]), taught[0].objective.hidden, remedy)
    for stage in taught:
        matched_layers(stage, init, student, teacher)
    _require_layers(teacher, "teacher.model")
    _require_layers(student, _place(taught[0]))


def matched_layers(stage: Stage, init: Init, student: Any, teacher: Any) -> dict[int, int]:
    """The pairs of layers, student's and teacher's, whose hidden states a stage brings together.

    Numbers are from 0, and of an encoder–decoder its decoder's. Where the stage names none, each
    layer is matched with the one that it is copied from, or that spaced copying would give it, as
    Shleifer & Rush 2020 (arXiv 2010.13002) do, and the last with the last.

    Args:
        stage: one with the term `hidden`.
        init: what the student starts as.
        student: its configuration.
        teacher: its teacher's configuration.

    Raises:
        ManifestError: there are no such layers, or the models are not of one kind.
    """
    _require_one_kind(stage, student, teacher)
    ours, theirs = _depth(student, stage), _depth(teacher, stage)
    asked, place = stage.objective.hidden_layers, f"{_place(stage)}_layers"
    if asked is None:
        return _spaced(init, ours, theirs, place)
    if isinstance(asked, tuple) and len(asked) != ours:
        remedy = f"names {len(asked)} layers for the student's {ours}: name pairs, or one for each"
        raise ManifestError(place, list(asked), remedy)
    pairs = dict(enumerate(asked)) if isinstance(asked, tuple) else dict(asked)
    for whose, count, numbers in (("student", ours, pairs), ("teacher", theirs, pairs.values())):
        if beyond := [number for number in numbers if number >= count]:
            remedy = f"is no layer of the {whose}'s {count}: they are numbered from 0"
            raise ManifestError(place, beyond[0], remedy)
    return dict(sorted(pairs.items()))


def layers_of(model: Module, config: Any) -> ModuleList | None:
    """The list of a model's layers, its decoder's where it has an encoder; None if it tells none.

    Args:
        model: of transformers.
        config: its configuration.
    """
    from torch.nn import ModuleList

    count, told = _number_of_layers(config), []
    for name, module in model.named_modules():
        named = LAYER_LIST.fullmatch(name)
        decodes = not config.is_encoder_decoder or "decoder" in name.split(".")
        if named and decodes and isinstance(module, ModuleList) and len(module) == count:
            told.append(module)
    return told[0] if len(told) == 1 else None


def _place(stage: Stage) -> str:
    return f"student.stages.{stage.name}.objective.hidden"


def _spaced(init: Init, ours: int, theirs: int, place: str) -> dict[int, int]:
    if ours > theirs:
        remedy = f"the student has {ours} layers and the teacher {theirs}: name pairs of them"
        raise ManifestError(place, None, remedy)
    copied = init.from_teacher.layers if init.from_teacher else None
    layers = chosen_layers(theirs, ours if copied is None else copied, place)
    return dict(enumerate((*layers[:-1], theirs - 1)))


def _require_one_kind(stage: Stage, student: Any, teacher: Any) -> None:
    """Both must read the same ids in the same way."""
    if student.is_encoder_decoder != teacher.is_encoder_decoder:
        with_encoder, without = ("student", "teacher")
        if teacher.is_encoder_decoder:
            with_encoder, without = without, with_encoder
        remedy = f"the {with_encoder} has an encoder and the {without} none: use other terms"
        raise ManifestError(_place(stage), stage.objective.hidden, remedy)
    starts = [getattr(config, "decoder_start_token_id", None) for config in (student, teacher)]
    if teacher.is_encoder_decoder and None not in starts and starts[0] != starts[1]:
        remedy = "the student's decoder_start_token_id is {}, the teacher's {}: make them one"
        raise ManifestError(_place(stage), stage.objective.hidden, remedy.format(*starts))


def _number_of_layers(config: Any) -> int | None:
    keys = DECODER_LAYER_KEYS if config.is_encoder_decoder else LAYER_KEYS
    told = config.get_text_config().to_dict()
    return next((int(told[key]) for key in keys if told.get(key)), None)


def _depth(config: Any, stage: Stage) -> int:
    if (count := _number_of_layers(config)) is None:
        raise _untold(_place(stage), config)
    return count


def _require_layers(config: Any, place: str) -> None:
    """Where a model's layers are must be known before it is loaded; none of it is allocated."""
    import torch

    try:
        with torch.device("meta"):
            model = model_class(config).from_config(config)
    except ValueError:  # a teacher that only its engine can run
        model = None
    if model is None or layers_of(model, config) is None:
        raise _untold(place, config)


def _untold(place: str, config: Any) -> ManifestError:
    remedy = "its layers cannot be told in transformers: train without hidden"
    return ManifestError(place, config.model_type, remedy)
