"""The manifest: every key a run can have, its type, its default and what it means."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from factory.capture import Logits
from factory.decoding import Generate
from factory.judgement import Judge
from factory.sections import Dtype, Fraction, Positive, Section


class Split(Section):
    """Where one split's rows are: one file with columns (`path`), or line-aligned text files."""

    path: str | None = Field(None, description="JSONL, TSV, CSV or Parquet; .gz and .zst too")
    source: str = Field("source", description="a column of `path`, or a file of source lines")
    target: str | None = Field(None, description="a column of `path`, or a file of target lines")
    id: str | None = Field(None, description="column that identifies a row; else the source text")

    @model_validator(mode="after")
    def _id_is_a_column(self) -> Self:
        if self.id and not self.path:
            raise ValueError("id names a column: it needs path")
        return self

    @property
    def names_source(self) -> bool:
        """Whether the manifest itself says which column or file holds the sources."""
        return "source" in self.model_fields_set


class TrainSplit(Split):
    """The training rows; `gold_fraction` of their targets may be seen by the student."""

    gold_fraction: Fraction = Field(1.0, description="share of gold the student may see")


class Data(Section):
    """The sources, by split."""

    root: str | None = Field(None, description="folder that data paths are relative to")
    train: TrainSplit | None = None
    unlabeled: Split | None = Field(None, description="sources without gold")
    validation: Split | None = None
    test: Split | None = None
    overlap: Literal["error", "drop", "keep"] = Field(
        "error", description="training rows whose source stands in the test split"
    )
    bad_rows: Literal["error", "set_aside"] = Field(
        "error", description="stop at the first unusable row, or list it in the view `refused`"
    )

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> Self:
        if not (self.train or self.unlabeled):
            raise ValueError("needs train or unlabeled")
        return self

    def splits(self) -> dict[str, Split]:
        """The declared splits, in the order in which equal sources are counted."""
        every = {
            "train": self.train,
            "unlabeled": self.unlabeled,
            "validation": self.validation,
            "test": self.test,
        }
        return {name: split for name, split in every.items() if split}


class Message(Section):
    """One turn of a chat prompt; `content` may hold {source} and other fields of the row."""

    role: Literal["system", "user", "assistant"]
    content: str


# Options of apply_chat_template that do not shape the text.
SHAPELESS = frozenset(
    {
        "conversation",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "truncation",
    }
)


class Prompt(Section):
    """How a row becomes the teacher's prompt: by a template, or the tokenizer's chat template."""

    template: str | None = Field(None, description="text with {source} and other fields")
    chat: tuple[Message, ...] | None = Field(
        None, description="turns, their contents with {fields}"
    )
    messages: str | None = Field(
        None, description="field that holds a row's own turns: a list of {role, content}"
    )
    system: str | None = Field(
        None, description="text with {fields}: the first turn where `messages` has no system turn"
    )
    chat_options: dict[str, Any] = Field(
        default_factory=dict,
        description="handed to the chat template as they are, such as enable_thinking",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = {"template": self.template, "chat": self.chat, "messages": self.messages}
        ways = [way for way, value in given.items() if value is not None]
        if len(ways) != 1 or not (ways != ["chat"] or self.chat):
            raise ValueError("needs exactly one of template, chat, messages")
        for key, users in (("system", ["messages"]), ("chat_options", ["chat", "messages"])):
            if key in self.model_fields_set and ways[0] not in users:
                raise ValueError(
                    f"{ways[0]!r} ignores {key}: remove it, or use {' or '.join(users)}"
                )
        if idle := sorted(SHAPELESS & self.chat_options.keys()):
            raise ValueError(f"chat_options.{idle[0]} does not shape the prompt: remove it")
        return self


class Teacher(Section):
    """The model that writes the pseudotargets, and the engine that runs it."""

    model: str = Field(description="folder in Hugging Face format, or hub id")
    revision: str | None = None
    engine: Literal["vllm", "transformers", "ctranslate2"] = "vllm"
    dtype: Dtype = "float32"
    replicas: Positive = Field(1, description="engines at once, each a process of its own")
    options: dict[str, Any] = Field(
        default_factory=dict, description="passed to the engine as they are"
    )


class Score(Section):
    """Targets that exist, whose distributions the teacher tells without decoding."""

    targets: tuple[str, ...] = Field(
        (), description="candidate, gold, or a field of the rows; told in the view `logits`"
    )


class TeacherLayers(Section):
    """A student cut from its teacher: so many layers, spaced from first to last."""

    layers: Positive


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

    from_teacher: TeacherLayers | None = None
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


class Objective(Section):
    """Weights of the loss terms; each term is a mean over target tokens."""

    ce: Annotated[float, Field(ge=0)] = Field(0.0, description="−log q of the target")
    forward_kl: Annotated[float, Field(ge=0)] = Field(
        0.0, description="KL to the teacher's stored tokens and tail, or to its draws"
    )

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if self.ce + self.forward_kl == 0:
            raise ValueError("needs a weight above 0")
        return self


class Stage(Section):
    """One stretch of training: its data, objective, length and schedule."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    data: str = Field(description="pseudolabels, gold, or SQL over the views")
    objective: Objective = Objective(ce=1.0)
    epochs: Positive = 1
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    final_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Fraction = Field(0.05, description="share of the stage's steps")
    batch_tokens: Positive = Field(8192, description="real tokens per optimiser step, all ranks")
    micro_batch_tokens: Positive = Field(8192, description="padded tokens per forward pass")
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: Annotated[float, Field(gt=0)] = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class DeepSpeed(Section):
    """What DeepSpeed is told beyond what the stages say."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    launcher: tuple[str, ...] = Field((), description="more options of the deepspeed command")


PSEUDOLABEL_STAGE = {
    "name": "pseudolabel",
    "data": "pseudolabels",
    "epochs": 4,
    "learning_rate": 1e-3,
}
GOLD_STAGE = {"name": "gold", "data": "gold", "epochs": 4, "learning_rate": 2e-4}


class Student(Section):
    """The model to train, and the stages it goes through, in order."""

    init: Init
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    dtype: Literal["float32", "bfloat16"] = "float32"
    deepspeed: DeepSpeed = DeepSpeed()
    processes: Positive = 1
    checkpoint_steps: Positive = Field(500, description="optimiser steps between checkpoints")
    validate_rows: Positive = Field(200, description="validation sources decoded each epoch")

    @model_validator(mode="after")
    def _stages_differ(self) -> Self:
        names = [stage.name for stage in self.stages]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"stage names must differ: {', '.join(sorted(twice))} stands twice")
        return self


class Evaluate(Section):
    """Which systems decode which splits, and what is computed from their text."""

    splits: tuple[Literal["validation", "test"], ...] = ("test",)
    systems: tuple[Literal["teacher", "student"], ...] = ("teacher", "student")
    engine: Literal["vllm", "transformers"] | None = Field(None, description="default: teacher's")
    decoding: Literal["greedy"] = "greedy"
    metrics: tuple[Literal["bleu", "chrf"], ...] = ("bleu", "chrf")
    folds: Annotated[int, Field(ge=0)] = 5


class Manifest(Section):
    """One run of the factory, from sources to a measured student."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
    seed: int = 17
    license: str | None = Field(None, description="licence of the data, for the card")
    languages: tuple[str, ...] = Field((), description="source and target language, for the card")
    data: Data
    prompt: Prompt = Prompt(template="{source}")
    teacher: Teacher | None = None
    candidates_from: str | None = Field(None, description="run whose candidates are taken over")
    generate: Generate = Generate()
    logits: Logits = Logits()
    score: Score = Score()
    judge: Judge = Judge()
    student: Student | None = None
    evaluate: Evaluate = Evaluate()

    @model_validator(mode="before")
    @classmethod
    def _default_stages(cls, tree: Any) -> Any:
        """Pseudolabels first, where a teacher makes them; gold last, where there is any."""
        student = tree.get("student") if isinstance(tree, dict) else None
        if not isinstance(student, dict) or "stages" in student:
            return tree
        stages = [PSEUDOLABEL_STAGE] if tree.get("teacher") else []
        data = tree.get("data")
        if isinstance(data, dict) and data.get("train"):
            stages.append(GOLD_STAGE)
        return tree | {"student": student | {"stages": stages}}

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.teacher is None:
            self._works_without_teacher()
        for name, split in self.data.splits().items():
            if self.prompt.messages and not split.path:
                raise ValueError(f"prompt.messages names a field: data.{name} needs path")
        for stage in self.student.stages if self.student else ():
            if stage.objective.forward_kl and self.logits.capture == "none":
                raise ValueError(
                    f"student.stages.{stage.name}: forward_kl needs distributions: "
                    "set logits.capture to top_k, top_p or sampled"
                )
        return self

    def _works_without_teacher(self) -> None:
        if self.student is None:
            raise ValueError("needs teacher, student, or both")
        if self.student.init.from_teacher:
            raise ValueError("student.init.from_teacher needs a teacher")
        for stage in self.student.stages:
            if stage.data == "pseudolabels":
                raise ValueError(f"student.stages.{stage.name}: pseudolabels need a teacher")
        if self.candidates_from:
            raise ValueError("candidates_from needs the teacher section that made them")
