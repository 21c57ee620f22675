"""`seqkd export`: pseudolabels in every form, read back; whole or not at all; and in again."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from factory.errors import QueryError, RunError
from factory.exchange import exporting
from factory.exchange.exporting import COLUMNS, DATA, export
from factory.judging.judge import judge
from factory.pipeline import import_candidates, run_steps
from factory.reading import load_manifest
from factory.records import RunDirectory
from factory.shards import SIGNATURE
from tests.factory.generation.test_generate import rows
from tests.models import manifest_tree, write_manifest_file
from tests.runs import add_samples, add_shard, finish_generate, make_run

AWKWARD = [
    "un\tdeux",
    "une\nligne\r\n",
    'des "guillemets"',
    "a\\tb\\",
    " blancs ",
    "é 👍 \u2028",
    "\\",
]


@pytest.fixture(scope="module")
def awkward(tmp_path_factory) -> RunDirectory:
    """A judged run whose sources and targets hold what ends cells, lines and strings."""
    run = make_run(tmp_path_factory.mktemp("runs") / "awkward", judge={"rules": ["error"]})
    samples = [{"sample_id": f"{9 - i}", "source": f"s {t}"} for i, t in enumerate(AWKWARD)]
    add_samples(run, samples)
    given = [{"sample_id": f"{9 - i}", "text": t} for i, t in enumerate(AWKWARD)]
    given[2] |= {"score": None, "mean_logprob": None}
    given[3] |= {"score": float("nan"), "mean_logprob": float("nan")}
    add_shard(run, 0, given)
    finish_generate(run)
    judge(run, "judge-key")
    return run


def expected() -> list[dict[str, Any]]:
    found = []
    for i, text in enumerate(AWKWARD):
        known = None if i in (2, 3) else -0.5
        ids = list(range(len(text.split()) + 1))
        values = (f"{9 - i}", f"s {text}", text, 0, known, known, "stop", ids)
        found.append(dict(zip(COLUMNS, values, strict=True)))
    return found


def unescaped(cell: str) -> str:
    """What docs/exchange.md tells a reader of the TSV to do."""
    spelled = {"\\t": "\t", "\\n": "\n", "\\r": "\r", "\\\\": "\\"}
    read, at = "", 0
    while at < len(cell):
        step = 2 if cell[at] == "\\" else 1
        read += spelled.get(cell[at : at + step], cell[at : at + step])
        at += step
    return read


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_lines_of_json_are_read_back(awkward, tmp_path, ending):
    path = tmp_path / f"out.{ending}"
    done = export(awkward, None, path)
    assert done == {"output": str(path), "to": "jsonl", "rows": 7, "bytes": path.stat().st_size}
    with path.open("rb") as stream:
        data = stream.read()
    if ending == "jsonl.gz":
        data = gzip.decompress(data)
    elif ending == "jsonl.zst":
        data = pa.CompressedInputStream(str(path), "zstd").read()
    assert [json.loads(line) for line in data.decode().split("\n")[:-1]] == expected()
    assert list(tmp_path.iterdir()) == [path]


def test_tabs_and_line_ends_do_not_break_a_line_of_tsv(awkward, tmp_path):
    path = tmp_path / "out.tsv"
    export(awkward, "tsv", path)
    header, *lines = path.read_bytes().decode().split("\n")[:-1]
    assert header.split("\t") == list(COLUMNS[:-1])
    assert not path.read_bytes().count(b"\r")
    for line, row in zip(lines, expected(), strict=True):
        read = dict(zip(COLUMNS, map(unescaped, line.split("\t")), strict=False))
        told = {name: "" if row[name] is None else str(row[name]) for name in COLUMNS[:-1]}
        assert read == told


def test_parquet_carries_its_signature(awkward, tmp_path):
    export(awkward, None, tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.to_pylist() == expected()
    assert table.schema.field("token_ids").type.value_type == pa.int32()
    told = json.loads(table.schema.metadata[SIGNATURE])
    assert told["run"] == "hand"
    assert told["steps"] == {name: f"{name}-key" for name in ("samples", "generate", "judge")}
    assert told["teacher"]["fingerprint"] == "teacher-print"


def test_a_folder_that_the_datasets_library_loads(awkward, tmp_path):
    folder = tmp_path / "my.data"
    done = export(awkward, "datasets", folder)
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert files == ["README.md", "data/train-00000-of-00001.parquet"]
    assert done["bytes"] == sum((folder / name).stat().st_size for name in files)
    assert pq.read_table(folder / DATA).to_pylist() == expected()
    card = (folder / "README.md").read_text("utf-8")
    matter = YAML(typ="safe").load(card.split("---\n")[1])
    [config] = matter["configs"]
    [split] = config["data_files"]
    assert (config["config_name"], split["split"]) == ("default", "train")
    assert [p.relative_to(folder).as_posix() for p in folder.glob(split["path"])] == files[1:]
    assert matter["size_categories"] == ["n<1K"]
    assert all(f"| {name} |" in card for name in COLUMNS)


@pytest.mark.skipif(not importlib.util.find_spec("datasets"), reason="no datasets")
def test_the_datasets_library_loads_it(awkward, tmp_path):
    from datasets import load_dataset

    export(awkward, "datasets", tmp_path / "data")
    loaded = load_dataset(str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == expected()


def test_rows_come_in_the_order_of_the_sources(finished, tmp_path):
    export(finished, "jsonl", tmp_path / "out.jsonl")
    told = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    selected = "SELECT sample_id, target FROM pseudolabels ORDER BY sample_id"
    assert [(row["sample_id"], row["target"]) for row in told] == rows(finished.root, selected)
    assert {row["rank"] for row in told} == {0, 1}


@pytest.mark.parametrize("form", ["jsonl", "tsv", "parquet", "datasets"])
def test_an_export_is_replaced_with_force_and_nothing_else_ever(awkward, tmp_path, form):
    path = tmp_path / ("data" if form == "datasets" else f"out.{form}")
    export(awkward, form, path)
    with pytest.raises(RunError, match="stands there: --force replaces it"):
        export(awkward, form, path)
    assert export(awkward, form, path, force=True)["rows"] == 7
    assert list(tmp_path.iterdir()) == [path]
    if form == "datasets":
        (path / "notes.txt").write_text("mine")
    else:
        path.write_bytes(b"mine\n")
    with pytest.raises(RunError, match="is no export: name another output"):
        export(awkward, form, path, force=True)
    if form == "datasets":
        assert (path / "notes.txt").read_text() == "mine"
    else:
        assert path.read_bytes() == b"mine\n"


def test_without_an_output_it_is_named_after_the_run(awkward, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert export(awkward)["output"] == "hand-pseudolabels.jsonl"
    assert export(awkward, "datasets")["output"] == "hand-pseudolabels"


def test_an_export_that_fails_leaves_nothing(awkward, tmp_path, monkeypatch):
    def fail(*_: Any) -> None:
        raise OSError("no room")

    monkeypatch.setattr(exporting, "render", fail)
    with pytest.raises(OSError, match="no room"):
        export(awkward, "datasets", tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


MISTAKES: list[tuple[str | None, str | None, str]] = [
    ("json", None, "--to: 'json': is no format: did you mean 'jsonl'?"),
    (None, "out.txt", "--output: 'out.txt': does not end as a format: .jsonl or .tsv"),
    ("tsv", "out.jsonl", "--output: 'out.jsonl': does not end as tsv"),
    ("datasets", "out.jsonl", "--output: 'out.jsonl': does not end as datasets"),
    (None, "out.parquet.gz", "--output: 'out.parquet.gz': does not end as a format"),
]


@pytest.mark.parametrize(("to", "output", "words"), MISTAKES)
def test_mistaken_forms_are_one_line(awkward, tmp_path, monkeypatch, to, output, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QueryError) as caught:
        export(awkward, to, Path(output) if output else None)
    assert str(caught.value).startswith(words)
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_pseudolabels_says_what_is_missing(tmp_path):
    run = make_run(tmp_path / "run")
    add_samples(run, [{"sample_id": "0", "source": "s"}])
    with pytest.raises(RunError, match="holds no pseudolabels: seqkd judge first"):
        export(run, "jsonl", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def sampling(folder: Path, teacher: Path, rules: list[Any]) -> Path:
    tree = manifest_tree(folder, teacher, judge={"rules": rules})
    del tree["student"], tree["logits"]
    tree["generate"] |= {"decoding": "sample", "num_return": 3, "temperature": 3.0, "check": 0}
    return write_manifest_file(folder / "manifest.yaml", tree)


@pytest.fixture(scope="module")
def sampled(tiny_llama, tmp_path_factory) -> RunDirectory:
    """Three samples a source, of which others than the first are selected too."""
    rules = ["error", {"length_ratio": {"min": 0.9, "max": 1.1}}, "duplicate"]
    folder = tmp_path_factory.mktemp("sampled")
    manifest = load_manifest(sampling(folder, tiny_llama, rules))
    run = run_steps(folder / "run", manifest, ("generate", "judge"))
    ranks = {rank for (rank,) in rows(run.root, "SELECT DISTINCT rank FROM pseudolabels")}
    assert ranks > {0}
    return run


@pytest.mark.parametrize("ending", ["jsonl.gz", "parquet"])
def test_out_of_one_run_and_into_another(sampled, tiny_llama, tmp_path, ending):
    export(sampled, None, tmp_path / f"out.{ending}")
    manifest = load_manifest(sampling(tmp_path, tiny_llama, ["error"]))
    figures = import_candidates(tmp_path / "run", manifest, str(tmp_path / f"out.{ending}"))
    run_steps(tmp_path / "run", manifest, ("judge",))
    told = "SELECT * FROM pseudolabels ORDER BY sample_id"
    assert rows(tmp_path / "run", told) == rows(sampled.root, told)
    assert "ignored" not in figures
