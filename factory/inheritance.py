"""`candidates_from`: another run's candidates and distributions, taken over."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from factory.errors import RunError
from factory.files import replacing, write_json
from factory.records import RunDirectory
from factory.shards import check_file


def take_over(run: RunDirectory, other: RunDirectory, key: str, keys: frozenset[str]) -> None:
    """Link the shards of another run into this one, once each, their checksums checked.

    The step is recorded under `key`; a shard's own must be among `keys`.

    Raises:
        RunError: the other run holds no candidates, or made them with other settings.
        DamagedFile: one of its files does not match its record.
    """
    began = time.monotonic()
    shards = other.shard_records()
    if not shards:
        raise RunError(other.root, None, "holds no candidates: run seqkd generate there first")
    if differing := next((shard for shard in shards if shard["key"] not in keys), None):
        remedy = (
            f"made its candidates with other settings (key {differing['key']}, here {key}): "
            "give this manifest the same teacher, prompt, generate and logits"
        )
        raise RunError(other.root, None, remedy)
    taken = {shard["shard"]: shard for shard in run.shard_records()}
    for shard in shards:
        if taken.get(shard["shard"]) != shard:
            _take(run, other, shard)
    totals = {
        n: sum(s[n] for s in shards) for n in ("samples", "candidates", "tokens", "errors", "bytes")
    }
    figures: dict[str, Any] = {"candidates_from": str(other.root), "shards": len(shards), **totals}
    run.finish("generate", key, time.monotonic() - began, **figures)


def _take(run: RunDirectory, other: RunDirectory, shard: dict[str, Any]) -> None:
    for file in shard["files"]:
        check_file(other, file)
        _link(other.path(file["path"]), run.path(file["path"]))
    write_json(run.path("shards", f"{shard['shard']:05d}.json"), shard)


def _link(source: Path, target: Path) -> None:
    """A hard link costs nothing; between file systems it takes a copy."""
    with replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
