"""How a student is made: every key of `student`."""

from __future__ import annotations

import operator
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from factory.launch import DeepSpeed
from factory.sections import Fraction, Positive, Section

Layers = int | tuple[int, ...]


class FromTeacher(Section):
    """A student cut from its teacher: layers of it, whole or narrower."""

    layers: Layers | None = Field(
        None,
        description="so many, spaced from first to last, or a list of numbers from 0; default all;"
        " of an encoder–decoder its decoder's",
    )
    encoder_layers: Layers | None = Field(None, description="of its encoder; default all")
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="what differs of the teacher's configuration, such as intermediate_size",
    )

    @model_validator(mode="after")
    def _cuts_something(self) -> Self:
        if self.layers is None and self.encoder_layers is None and not self.config:
            raise ValueError("needs layers, encoder_layers or config")
        for key in ("layers", "encoder_layers"):
            asked = getattr(self, key)
            numbers = asked if isinstance(asked, tuple) else ()
            if asked == () or (isinstance(asked, int) and asked < 1):
                raise ValueError(f"{key}: take at least one")
            if before := [number for number in numbers if number < 0]:
                raise ValueError(f"{key}: {before[0]} is no layer: they are numbered from 0")
            if twice := [number for number in numbers if numbers.count(number) > 1]:
                raise ValueError(f"{key}: layer {twice[0]} stands twice: take it once")
        return self

    @model_serializer(mode="wrap")
    def _told(self, told: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is said and no more: a student made before a key was there goes on standing."""
        tree: dict[str, Any] = told(self)
        return {key: value for key, value in tree.items() if value not in (None, {})}


class TrainTokenizer(Section):
    """A byte-level BPE trained on the run's own training text."""

    vocab_size: Annotated[int, Field(ge=300)]
    special_tokens: tuple[str, ...] = Field(
        ("<pad>", "<s>", "</s>", "<sep>"), description="the first pads, the third ends a target"
    )

    @model_validator(mode="after")
    def _enough_specials(self) -> Self:
        if len(set(self.special_tokens)) < 3:
            raise ValueError("needs at least three: padding, start and end")
        return self


class TokenizerSource(Section):
    """Where the student's tokenizer comes from, if not from its model or its teacher."""

    train: TrainTokenizer | None = None
    model: str | None = Field(None, description="folder or hub id that holds a tokenizer")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.train is None) == (self.model is None):
            raise ValueError("needs either train or model")
        return self


class Init(Section):
    """What the student starts as: cut from the teacher, a checkpoint, or a new configuration."""

    from_teacher: FromTeacher | None = None
    model: str | None = Field(None, description="folder or hub id to start from")
    config: dict[str, Any] | None = Field(
        None, description="a Hugging Face configuration, model_type included; weights are random"
    )
    tokenizer: TokenizerSource | None = Field(None, description="default: the model's, teacher's")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [self.from_teacher, self.model, self.config]
        if sum(value is not None for value in given) != 1:
            raise ValueError("needs exactly one of from_teacher, model, config")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("config needs model_type, such as llama")
        return self


# Terms over the teacher's distributions; those that draws tell too; those that a temperature suits.
OVER_DISTRIBUTIONS = (
    "forward_kl",
    "reverse_kl",
    "jsd",
    "skew_kl",
    "skew_reverse_kl",
    "tvd",
    "soft_ce",
    "atkd",
)
TERMS = ("ce", *OVER_DISTRIBUTIONS, "hidden")
OF_DRAWS = ("forward_kl", "soft_ce")
TEMPERED = ("forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "soft_ce")
READERS = {
    "jsd_beta": ("jsd",),
    "skew_alpha": ("skew_kl", "skew_reverse_kl"),
    "temperature": TEMPERED,
    "instance_weights": OVER_DISTRIBUTIONS,
    "hidden_layers": ("hidden",),
}

Weight = Annotated[float, Field(ge=0)]
Between = Annotated[float, Field(gt=0, lt=1)]


class Objective(Section):
    """Weights of the loss terms, each a mean over target tokens; and what the terms take."""

    ce: Weight = Field(0.0, description="−log q of the target")
    forward_kl: Weight = Field(
        0.0, description="KL to the teacher's stored tokens and tail, or to its draws"
    )
    reverse_kl: Weight = Field(0.0, description="KL of the student to the teacher")
    jsd: Weight = Field(0.0, description="generalised Jensen–Shannon divergence, by jsd_beta")
    skew_kl: Weight = Field(0.0, description="KL to a mixture of both, by skew_alpha")
    skew_reverse_kl: Weight = Field(0.0, description="the same the other way round")
    tvd: Weight = Field(0.0, description="total variation distance")
    soft_ce: Weight = Field(0.0, description="cross-entropy with the teacher's distribution")
    atkd: Weight = Field(0.0, description="hard and easy tokens taught differently")
    hidden: Weight = Field(
        0.0, description="squared distance to the hidden states of the teacher, loaded beside"
    )
    jsd_beta: Between = Field(0.5, description="share of the teacher in the mixture")
    skew_alpha: Between = Field(0.1, description="share that is mixed in")
    temperature: Annotated[float, Field(gt=0, le=100)] = Field(
        1.0, description="of teacher and student in the divergences"
    )
    instance_weights: Literal["none", "easy_first"] = Field(
        "none", description="rows the teacher finds hard count more and more"
    )
    hidden_layers: dict[int, int] | tuple[int, ...] | None = Field(
        None,
        description="student's layer: teacher's, from 0; or the teacher's of each, in order;"
        " default: as they are copied, the last with the last",
    )

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if not self.terms:
            raise ValueError("needs a weight above 0")
        for key, readers in READERS.items():
            if key in self.model_fields_set and not self.terms.keys() & set(readers):
                raise ValueError(f"nothing reads {key}: remove it, or weigh {readers[0]}")
        return self

    @model_validator(mode="after")
    def _names_layers(self) -> Self:
        asked = self.hidden_layers
        if asked is None:
            return self
        numbers = (*asked, *asked.values()) if isinstance(asked, dict) else asked
        if not numbers:
            raise ValueError("hidden_layers names no layer: name some, or leave it out")
        if below := [number for number in numbers if number < 0]:
            raise ValueError(f"hidden_layers: {below[0]} is no layer: they are numbered from 0")
        return self

    @model_serializer(mode="wrap")
    def _told(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without later keys at their defaults, so that what was trained before them stands."""
        fields = type(self).model_fields
        first = ("ce", "forward_kl")
        return {
            key: value
            for key, value in whole(self).items()
            if key in first or value != fields[key].default
        }

    @property
    def terms(self) -> dict[str, float]:
        """The terms that have a weight."""
        weights = {name: float(getattr(self, name)) for name in TERMS}
        return {name: weight for name, weight in weights.items() if weight}

    @property
    def distributions(self) -> list[str]:
        """Those of them that need the teacher's distributions."""
        return [name for name in self.terms if name in OVER_DISTRIBUTIONS]

    @property
    def not_of_draws(self) -> str | None:
        """A key that draws cannot serve, or None."""
        unfit = [name for name in self.distributions if name not in OF_DRAWS]
        return unfit[0] if unfit else "temperature" if self.temperature != 1 else None

    @property
    def realised(self) -> bool:
        """Whether it reads the probability that the teacher gives the target tokens themselves."""
        return bool(self.atkd) or self.instance_weights != "none"


BETAS, EPSILON = (0.9, 0.999), 1e-8  # PyTorch's
Decay = Annotated[float, Field(ge=0, lt=1)]
LENGTHS = ("epochs", "steps", "tokens")


def _is_default(value: object) -> bool:
    """Keys that came later are left out of a dump where they say nothing: old keys stand."""
    return value in (None, (), "all")


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return pattern


Share = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _some(mixture: dict[str, Share]) -> dict[str, Share]:
    if not mixture:
        raise ValueError("names no selection: give pseudolabels, gold or SQL, each with its weight")
    return mixture


class Stage(Section):
    """One stretch of training: its data, objective, length and schedule."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    data: str | Annotated[dict[str, Share], AfterValidator(_some)] = Field(
        description="pseudolabels, gold, or SQL over the views; or several, with weights"
    )
    targets: Literal["all", "one_each_epoch"] = Field(
        "all",
        description="where a source has several: every epoch all of them, or the next of them",
        exclude_if=_is_default,
    )
    objective: Objective = Objective(ce=1.0)
    epochs: Positive | None = Field(None, description="its length; default: 1")
    steps: Positive | None = Field(
        None, description="its length in optimiser steps instead", exclude_if=_is_default
    )
    tokens: Positive | None = Field(
        None, description="its length in target tokens instead", exclude_if=_is_default
    )
    validate_steps: Positive | None = Field(
        None,
        description="optimiser steps between validations; default: one after every epoch",
        exclude_if=_is_default,
    )
    patience: Positive | None = Field(
        None,
        description="validations without gain after which the stage ends early",
        exclude_if=_is_default,
    )
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    final_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Fraction = Field(0.05, description="share of the stage's steps")
    batch_tokens: Positive = Field(8192, description="real tokens per optimiser step, all ranks")
    micro_batch_tokens: Positive = Field(8192, description="padded tokens per forward pass")
    freeze: tuple[Annotated[str, AfterValidator(_compiles)], ...] = Field(
        (),
        description="regular expressions: parameters with one in their name stay as they are",
        exclude_if=_is_default,
    )
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[Decay, Decay] = Field(
        BETAS, description="decay of AdamW's two means", exclude_if=lambda value: value == BETAS
    )
    epsilon: Annotated[float, Field(gt=0)] = Field(
        EPSILON, description="AdamW's", exclude_if=lambda value: value == EPSILON
    )
    clip: Annotated[float, Field(gt=0)] = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @property
    def shares(self) -> dict[str, float]:
        """What part of an epoch's rows each selection gives; they add up to 1."""
        weights = {self.data: 1.0} if isinstance(self.data, str) else self.data
        return {data: weight / sum(weights.values()) for data, weight in weights.items()}

    @model_validator(mode="before")
    @classmethod
    def _one_length(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        given = [name for name in LENGTHS if tree.get(name) is not None]
        if len(given) > 1:
            raise ValueError(f"takes one length, and {' and '.join(given)} are given: leave one")
        return tree if given else tree | {"epochs": 1}


PSEUDOLABEL_STAGE = {
    "name": "pseudolabel",
    "data": "pseudolabels",
    "epochs": 4,
    "learning_rate": 1e-3,
}
GOLD_STAGE = {"name": "gold", "data": "gold", "epochs": 4, "learning_rate": 2e-4}


NO_TENSORBOARD = "TensorBoard is not installed: pip install 'seqkd[tensorboard]', or remove it"


class Student(Section):
    """The model to train, and the stages it goes through, in order."""

    init: Init
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    dtype: Literal["float32", "bfloat16"] = "float32"
    deepspeed: DeepSpeed = DeepSpeed()
    processes: Positive = 1
    checkpoint_steps: Positive = Field(500, description="optimiser steps between checkpoints")
    validate_rows: Positive = Field(200, description="validation sources decoded each time")
    tensorboard: bool = Field(
        False,
        description="write the train log for TensorBoard too, into tensorboard/",
        exclude_if=operator.not_,
    )
    packing: bool = Field(
        False, description="rows one after another in one sequence", exclude_if=operator.not_
    )
    chunked_head: bool = Field(
        False,
        description="head and loss over a few target positions at a time",
        exclude_if=operator.not_,
    )
    compile: bool = Field(
        False, description="the model goes through torch.compile", exclude_if=operator.not_
    )
    validate_engine: Literal["auto", "ctranslate2", "transformers"] | None = Field(
        None, description="what decodes them; default: auto", exclude_if=_is_default
    )

    def essence(self) -> dict[str, Any]:
        """All that its outcome depends on: not where it is trained, watched, or by how many."""
        where: Any = {"processes": True, "tensorboard": True, "deepspeed": {"hostfile"}}
        tree = self.model_dump(mode="json", exclude=where)
        tree["deepspeed"]["launcher"] = []
        return tree

    @model_validator(mode="after")
    def _stages_differ(self) -> Self:
        names = [stage.name for stage in self.stages]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"stage names must differ: {', '.join(sorted(twice))} stands twice")
        return self

    @model_validator(mode="after")
    def _head_is_whole(self) -> Self:
        if self.chunked_head and self.deepspeed.zero_stage == 3:
            raise ValueError(
                "chunked_head: zero_stage 3 parts the head: take 2 or less, or no chunks"
            )
        return self
