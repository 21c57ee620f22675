"""The manifest: every key a run can have, its type, its default and what it means."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from factory.capture import Logits
from factory.decoding import Generate
from factory.evaluation import Evaluate
from factory.judgement import Judge
from factory.sections import Dtype, Fraction, Positive, Section
from factory.training import GOLD_STAGE, PSEUDOLABEL_STAGE, Stage, Student


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
            self._captures_what_is_trained_on(stage)
            self._validates(stage)
        return self

    def _captures_what_is_trained_on(self, stage: Stage) -> None:
        told, unfit = stage.objective.distributions, stage.objective.not_of_draws
        captures = "top_k or top_p" if unfit else "top_k, top_p or sampled"
        if told and self.logits.capture == "none":
            raise ValueError(
                f"student.stages.{stage.name}: {told[0]} needs distributions: "
                f"set logits.capture to {captures}"
            )
        if unfit and self.logits.capture == "sampled":
            raise ValueError(
                f"student.stages.{stage.name}: draws do not tell {unfit}: "
                "set logits.capture to top_k or top_p, or train on forward_kl"
            )

    def _validates(self, stage: Stage) -> None:
        """What counts validations needs some."""
        given = [key for key in ("patience", "validate_steps") if getattr(stage, key)]
        if given and not (self.data.validation and self.data.validation.target):
            place = f"student.stages.{stage.name}.{given[0]}"
            raise ValueError(f"{place} needs validation: give data.validation with its target")

    def _works_without_teacher(self) -> None:
        if self.student is None:
            raise ValueError("needs teacher, student, or both")
        if self.student.init.from_teacher:
            raise ValueError("student.init.from_teacher needs a teacher")
        for stage in self.student.stages:
            if "pseudolabels" in stage.shares:
                raise ValueError(f"student.stages.{stage.name}: pseudolabels need a teacher")
            if stage.objective.hidden:
                raise ValueError(f"student.stages.{stage.name}: hidden needs a teacher")
        if self.candidates_from:
            raise ValueError("candidates_from needs the teacher section that made them")
