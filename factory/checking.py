"""`seqkd check`: everything about a run that can be known without loading a model."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from factory.architecture import check_start, count_parameters, larger_than_teacher
from factory.manifest import Manifest
from factory.query.catalog import connect
from factory.records import RunDirectory
from factory.samples import build_samples
from factory.staging import require_gold
from factory.steps import Plan, make_plan

# Bytes a candidate row takes beyond its distributions, and an (id, log-probability) pair at k = 16;
# at k = 64 it is 4.0, 2.4 and 1.5. Measured on English-French captions, see benchmarks/results.
ROW_BYTES = 160
PAIR_BYTES = {"exact": 4.4, "half": 2.8, "compact": 2.0}
DISTINCT_SHARE = 0.25  # of draws, as arXiv 2503.16870 tells: 12 of 50


def check_manifest(manifest: Manifest) -> dict[str, Any]:
    """Read every row as a run would, into a folder that is thrown away.

    Returns:
        rows by split, refused rows, rows that do not fit the context, shards, estimated bytes.

    Raises:
        UserError: the manifest, its models or its data are at fault.
    """
    plan = make_plan(manifest)
    with tempfile.TemporaryDirectory(prefix="seqkd-check-") as folder:
        run = RunDirectory(Path(folder) / "run")
        run.adopt(manifest)
        build_samples(run, manifest, plan.prompter, key="check")
        require_gold(run, manifest)
        return _figures(plan, run)


def _figures(plan: Plan, run: RunDirectory) -> dict[str, Any]:
    read = run.step("samples")
    facts: dict[str, Any] = _warnings(plan) | {
        "rows": read["rows"],
        "refused": read["refused"],
        "visible_gold": read["visible_gold"],
        "in_test_too": read["overlap"].get("test", 0),
        "in_validation_too": read["overlap"].get("validation", 0),
    }
    if plan.teacher is None:
        return facts
    sources, unfit, tokens = _prompts(run, plan.teacher.context)
    return facts | {
        "do_not_fit": unfit,
        "shards": math.ceil(sources / plan.manifest.generate.shard_size),
        "estimated_bytes": round(sources * ROW_BYTES + tokens * _token_bytes(plan.manifest)),
    }


def _warnings(plan: Plan) -> dict[str, str]:
    config = check_start(plan.manifest, plan.prompter.tokenizer)
    if config is None or plan.teacher is None:
        return {}
    warning = larger_than_teacher(plan.manifest, count_parameters(config))
    return {"warning": warning} if warning else {}


def _prompts(run: RunDirectory, context: int | None) -> tuple[int, int, int]:
    """Sources to decode, those whose prompt leaves no room, and the tokens their targets may take.

    A target is taken to be as long as its prompt.
    """
    with connect(run) as database:
        [row] = database.execute(
            "SELECT count(*), count(*) FILTER (n_prompt_tokens >= $context), sum(n_prompt_tokens)"
            " FROM samples WHERE split IN ('train', 'unlabeled')",
            {"context": context or 2**31 - 1},
        ).fetchall()
    return int(row[0]), int(row[1]), int(row[2] or 0)


def _token_bytes(manifest: Manifest) -> float:
    if manifest.logits.capture == "none":
        return 4.0
    pairs = manifest.logits.width or DISTINCT_SHARE * manifest.logits.draws
    return 12.0 + pairs * PAIR_BYTES[manifest.logits.precision]
