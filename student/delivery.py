"""Process entry: `python -m student.delivery RUN_DIR ASKED` writes a stage's model and checks it.

`ASKED` is JSON, the fields of `Asked`. The folder is one beside the final one: whoever started this
process gives it its name when it is whole.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from factory.architecture import model_class, read_config
from factory.engines import ABILITIES
from factory.engines.conversion import RECORD, rename_tokens
from factory.engines.ctranslate2 import convert
from factory.errors import EngineError, RunError, StepFailed
from factory.files import write_json
from factory.manifest import Manifest
from factory.prompting.tokenizing import first_token_id, load_tokenizer, tokenizer_fingerprint
from factory.records import RunDirectory, library_versions
from factory.shards import check_file
from student.entry import run_process
from student.evidence import Evidence
from student.generation import generation_config, listed
from student.held_out import of_tokenizer
from student.likeness import (
    REMEDY,
    TIE,
    Decoded,
    compare_decoded,
    compare_logits,
    compare_logprobs,
    tolerance_of,
)
from student.plan import PlannedStage, plan
from student.writers import CTranslate2Writer, TransformersWriter, Writer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

OURS = ("README.md", "seqkd.json")
STORING = {"shard_size", "window", "check"}


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be delivered: of which stage, how, into which folder; `place` is its final name.

    `dtype` None keeps the dtype that the stage was trained in.
    """

    folder: str
    place: str
    format: str
    stage: str | None = None
    dtype: str | None = None
    quantization: str | None = None


def deliver(run: RunDirectory, told: str) -> None:
    """Write the model of a stage that is done, load it back, and compare it with the stage's own.

    Raises:
        RunError: no such stage is done.
        DamagedFile: a file of the stage is not what its record says.
        StepFailed: what was loaded back is another model.
    """
    asked = Asked(**json.loads(told))
    manifest = run.manifest()
    planned = _chosen(run, manifest, asked.stage)
    for file in (planned.done() or {})["files"]:
        check_file(run, file)
    delivery = Delivery(run, manifest, planned, asked)
    delivery.write()
    likeness = delivery.check()
    write_json(Path(asked.folder) / "seqkd.json", delivery.facts() | {"check": likeness})


def _chosen(run: RunDirectory, manifest: Manifest, name: str | None) -> PlannedStage:
    """The stage of that name, or the last, that is done under its present key."""
    done = [p for p in plan(run, manifest) if p.done() and name in (None, p.stage.name)]
    if not done:
        remedy = f"{name or 'the student'} is not trained as its manifest says: seqkd train first"
        raise RunError(run.root, None, remedy)
    return done[-1]


class Delivery:
    """One model on its way out of a run."""

    def __init__(
        self, run: RunDirectory, manifest: Manifest, planned: PlannedStage, asked: Asked
    ) -> None:
        self.run, self.manifest, self.planned, self.asked = run, manifest, planned, asked
        self.folder = Path(asked.folder)
        self.tokenizer: PreTrainedTokenizerFast = load_tokenizer(str(planned.model))
        self.original = TransformersWriter(planned.model, self.tokenizer)
        search = manifest.evaluate.searched(manifest.generate)
        self.generate = of_tokenizer(search, same=planned.init.same_tokenizer)
        first = self.generate.first_token
        self.first = None if first is None else first_token_id(self.tokenizer, first)
        model = self.original.model
        self.generation = generation_config(model, self.generate, self.first)
        model.generation_config = self.generation
        self.encoder_decoder = bool(model.config.is_encoder_decoder)
        self.stored = str(model.dtype).removeprefix("torch.")
        self.kind = asked.quantization or asked.dtype or self.stored

    def write(self) -> None:
        """Write weights, tokenizer and generation configuration."""
        if self.asked.format == "ctranslate2":
            self._convert()
        else:
            self._save()
        self.tokenizer.save_pretrained(self.folder)
        self.generation.save_pretrained(self.folder)

    def check(self) -> dict[str, Any]:
        """Load the folder back and compare; returns the figures.

        Raises:
            StepFailed: it is another model, or another tokenizer.
        """
        place, tolerance = self.asked.place, tolerance_of(self.kind)
        tokenizer = load_tokenizer(str(self.folder))
        if tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(self.tokenizer):
            what = "its tokenizer gives other ids than the student's"
            raise StepFailed(f"{place}: {what}: {REMEDY}")
        evidence = Evidence(self.run, self.manifest, self.planned, tokenizer, self.generate)
        pairs, copy = evidence.pairs(), self._loaded(tokenizer)
        likeness = compare_logprobs(self.original, copy, pairs, tolerance, place)
        if isinstance(copy, TransformersWriter) and self.kind == self.stored:
            compare_logits(self.original, copy, pairs, place)
            likeness.tolerance = 0.0
        gap = TIE * tolerance_of(self.kind, self.stored)
        rows = self._wanted(evidence)
        counts = compare_decoded(self.original, copy, rows, gap, place)
        likeness.decoded, likeness.same = counts
        return likeness.as_record() | {"evaluated": evidence.evaluated}

    def facts(self) -> dict[str, Any]:
        """What `seqkd.json` says beside the check."""
        kind = "quantization" if self.asked.format == "ctranslate2" else "dtype"
        prompt = self.manifest.prompt.model_dump(mode="json", exclude_defaults=True)
        return {
            "seqkd": library_versions()["seqkd"],
            "format": self.asked.format,
            kind: self.kind,
            "run": self.manifest.name,
            "stage": self.planned.stage.name,
            "parameters": self.planned.init.parameters,
            "encoder_decoder": self.encoder_decoder,
            "languages": list(self.manifest.languages),
            "prompt": prompt or {"template": self.manifest.prompt.template},
            "decoding": self._decoding(),
            "generation": self._generation(),
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "files": sorted([*(path.name for path in self.folder.iterdir()), *OURS]),
        }

    def _decoding(self) -> dict[str, Any]:
        """How it was evaluated, where that is not the default, and the limit of its targets."""
        told = self.generate.model_dump(mode="json", exclude_defaults=True, exclude=STORING)
        most = self.generate.model_dump(mode="json", include={"max_new_tokens"})
        return {"decoding": self.generate.decoding} | most | told

    def _generation(self) -> dict[str, Any]:
        """The generation configuration in tokens, for who does not read it by transformers."""
        told, names = self.generation, self.tokenizer.convert_ids_to_tokens
        forced = told.forced_bos_token_id
        return {
            "ends": names(listed(told.eos_token_id)),
            "forced": None if forced is None else names(forced),
            "limit": told.max_new_tokens,
            "beams": told.num_beams,
        }

    def _save(self) -> None:
        config = read_config(str(self.planned.model), None, str(self.planned.model))
        model = model_class(config).from_pretrained(
            self.planned.model, dtype=getattr(torch, self.kind), use_safetensors=True
        )
        model.generation_config = self.generation
        model.save_pretrained(self.folder)

    def _convert(self) -> None:
        self._require_able()
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="converting-") as cache:
            try:
                made = convert(str(self.planned.model), self.kind, Path(cache))
            except EngineError as error:
                remedy = f"{error.remedy.partition('; use engine')[0]}; --format hf works"
                raise RunError("--format", "ctranslate2", remedy) from None
            for path in made.folder.iterdir():
                if path.name != RECORD:
                    shutil.move(path, self.folder / path.name)
        rename_tokens(self.folder, self._names(self.tokenizer, len(made.names)))

    def _require_able(self) -> None:
        """Refuse a decoding that CTranslate2 has nothing for; what comes after it is the user's."""
        generate = self.generate
        lacking = ABILITIES["ctranslate2"].lacking(generate.decoding, self.encoder_decoder)
        given = sorted((lacking - {"first_token", "reasoning"}) & generate.model_fields_set)
        if given:
            remedy = f"CTranslate2 has no generate.{given[0]}: take --format hf"
            raise RunError("--format", "ctranslate2", remedy)

    def _loaded(self, tokenizer: PreTrainedTokenizerFast) -> Writer:
        if self.asked.format != "ctranslate2":
            return TransformersWriter(self.folder, tokenizer)
        size = self.original.model.config.get_text_config().vocab_size
        names = self._names(tokenizer, size)
        return CTranslate2Writer(self.folder, names, self.generation, self.encoder_decoder)

    def _wanted(self, evidence: Evidence) -> Iterator[Decoded]:
        """What the copy must decode: what the evaluation did, or what the original does now."""
        forced = bool(listed(self.generation.forced_eos_token_id))
        for row in evidence.decoded(set(listed(self.generation.eos_token_id)), forced):
            prompt = [*row.prompt, *self.lead]
            if evidence.predictions:
                yield replace(row, prompt=prompt, target=row.target[len(self.lead) :])
            else:
                yield Decoded(row.sample_id, prompt, self.original.write(prompt), cut=False)

    @property
    def lead(self) -> list[int]:
        """What a decoder's prompt ends with where targets begin with a forced token."""
        return [] if self.first is None or self.encoder_decoder else [self.first]

    @staticmethod
    def _names(tokenizer: PreTrainedTokenizerFast, size: int) -> list[str]:
        """A token for every id; heads may be padded beyond the tokenizer."""
        known = {token: name for name, token in tokenizer.get_vocab().items()}
        return [known.get(token, f"<unused {token}>") for token in range(size)]


if __name__ == "__main__":
    run_process(deliver)
