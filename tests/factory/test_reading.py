"""Manifests as they are read: scalars, variables, overrides, paths, and the resolved copy."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.decoding import Lengths
from factory.errors import ManifestError
from factory.manifest import Manifest
from factory.reading import load_manifest, write_manifest

MINIMAL = """
name: a
data: {train: {source: a.en, target: a.fr}}
teacher: {model: org/model}
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "manifest.yaml"
    path.parent.mkdir()
    path.write_text(MINIMAL, encoding="utf-8")
    return path


def value(manifest: Manifest, key: str) -> Any:
    found: Any = manifest
    for part in key.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    return found


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("seed=18", "seed", 18),
        ("seed=0o17", "seed", 15),
        ("teacher.options={x: 1e-4}", "teacher.options", {"x": 1e-4}),
        (
            "teacher.options={x: no, y: on, z: 010}",
            "teacher.options",
            {"x": "no", "y": "on", "z": 10},
        ),
        (
            "teacher.options.deep.er=[a, null, ~, 1.5]",
            "teacher.options",
            {"deep": {"er": ["a", None, None, 1.5]}},
        ),
        ("license=no", "license", "no"),
        ("license='1'", "license", "1"),
        ("license=a=b", "license", "a=b"),
        ("license=", "license", None),
        ("languages=[en, no]", "languages", ("en", "no")),
        ("prompt.template='<s>{source}'", "prompt.template", "<s>{source}"),
        ("logits={capture: top_k, k: 8}", "logits.k", 8),
        ("logits.capture=top_k", "logits.capture", "top_k"),
        ("generate.max_new_tokens=7", "generate.max_new_tokens", 7),
        (
            "generate.max_new_tokens={ratio: 1e0, cap: 9}",
            "generate.max_new_tokens",
            Lengths(ratio=1.0, cap=9),
        ),
        ("data.train.gold_fraction=1e-1", "data.train.gold_fraction", 0.1),
        ("data.overlap=drop", "data.overlap", "drop"),
    ],
)
def test_overrides(override: str, key: str, expected: Any, manifest: Path) -> None:
    assert value(load_manifest(manifest, [override]), key) == expected


def test_overrides_come_in_order(manifest: Path) -> None:
    overrides = [
        "logits.capture=top_k",
        "logits.k=3",
        "logits={capture: top_k, k: 4}",
        "logits.k=5",
    ]
    assert load_manifest(manifest, overrides).logits.k == 5


STAGES = """
student:
  init: {from_teacher: {layers: 1}}
  stages: [{name: one, data: gold}, {name: two, data: gold}]
"""


@pytest.mark.parametrize("entry", ["1", "two"])
def test_overrides_reach_into_lists_by_place_or_name(entry: str, manifest: Path) -> None:
    manifest.write_text(MINIMAL + STAGES, encoding="utf-8")
    loaded = load_manifest(
        manifest,
        [f"student.stages.{entry}.epochs=9", f"student.stages.{entry}.objective.ce=0.5"],
    )
    assert loaded.student is not None
    one, two = loaded.student.stages
    assert (one.epochs, two.epochs, two.objective.ce) == (1, 9, 0.5)


def test_an_alias_is_overridden_alone(manifest: Path) -> None:
    stages = "stages: [&one {name: one, data: gold}, {<<: *one, name: two}]"
    init = "init: {config: &c {model_type: llama}}"
    manifest.write_text(
        f"name: a\ndata: {{train: &t {{source: a.en}}, test: *t}}\nstudent:\n  {init}\n  {stages}\n"
        "teacher: {model: m, options: *c}\n",
        encoding="utf-8",
    )
    loaded = load_manifest(manifest, ["data.test.source=b.en", "student.init.config.x=1"])
    assert loaded.data.train is not None
    assert loaded.data.test is not None
    assert loaded.data.train.source.endswith("a.en")
    assert loaded.data.test.source.endswith("b.en")
    assert value(loaded, "teacher.options") == {"model_type": "llama"}
    assert value(loaded, "student.stages.1.name") == "two"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("{train: {source: a.en, target: b/a.fr}}", ["folder/a.en", "folder/b/a.fr", None]),
        ("{train: {source: ../a.en}}", ["a.en", None, None]),
        ("{train: {source: /x/a.en}}", ["/x/a.en", None, None]),
        ("{train: {source: 's3://b/a.en'}}", ["s3://b/a.en", None, None]),
        ("{root: r, train: {source: a.en}}", ["folder/r/a.en", None, None]),
        ("{root: ../r, train: {source: ../a.en}}", ["a.en", None, None]),
        ("{root: /r, train: {source: a.en}}", ["/r/a.en", None, None]),
        ("{root: r, train: {path: a.tsv, source: en, target: fr}}", ["en", "fr", "folder/r/a.tsv"]),
        ("{train: {path: a.tsv, source: en}}", ["en", None, "folder/a.tsv"]),
        ("{root: 's3://b/c', train: {source: a.en}}", ["s3://b/c/a.en", None, None]),
    ],
)
def test_paths_in_a_manifest(data: str, expected: list[str | None], manifest: Path) -> None:
    manifest.write_text(f"name: a\nteacher: {{model: m}}\ndata: {data}\n", encoding="utf-8")
    assert places(load_manifest(manifest)) == absolute(expected, manifest.parents[1])


def places(loaded: Manifest) -> list[str | None]:
    assert loaded.data.train is not None
    return [loaded.data.train.source, loaded.data.train.target, loaded.data.train.path]


def absolute(expected: list[str | None], base: Path) -> list[str | None]:
    """Paths below `base`; words as they are after a colon, with a slash before, or no ending."""

    def place(word: str) -> str:
        as_it_is = word.startswith("/") or "://" in word or not Path(word).suffix
        return word[1:] if word.startswith(":") else word if as_it_is else str(base / word)

    return [word and place(word) for word in expected]


def test_paths_of_a_judge(manifest: Path, monkeypatch) -> None:
    monkeypatch.chdir(manifest.parents[1])
    manifest.write_text(
        "name: a\nteacher: {model: m}\ndata: {train: {source: a.en}}\n"
        "judge: {glossary: terms.tsv, reverse: {model: ./back}}\n",
        encoding="utf-8",
    )
    judge = load_manifest(manifest).judge
    assert judge.glossary == str(manifest.parent / "terms.tsv")
    assert judge.reverse is not None
    assert judge.reverse.model == str(manifest.parent / "back")
    overrides = ["judge.glossary=b.tsv", "judge.reverse.model=some/model"]
    judge = load_manifest(manifest, overrides).judge
    assert judge.glossary == str(manifest.parents[1] / "b.tsv")
    assert judge.reverse is not None
    assert judge.reverse.model == "some/model"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.train.source=a.en"], ["cwd/a.en", "folder/a.fr", None]),
        (["data.train={source: a.en, target: ../a.fr}"], ["cwd/a.en", "a.fr", None]),
        (["data={train: {source: a.en}}"], ["cwd/a.en", None, None]),
        (["data.root=r"], ["cwd/r/a.en", "cwd/r/a.fr", None]),
        (["data.train={path: a.tsv, source: en}"], ["en", None, "cwd/a.tsv"]),
        (["data.train.path=a.tsv"], [":a.en", ":a.fr", "cwd/a.tsv"]),
        (["data.train.path=a.tsv", "data.train.source=en"], ["en", ":a.fr", "cwd/a.tsv"]),
    ],
)
def test_paths_in_overrides_are_of_the_working_folder(
    overrides: list[str], expected: list[str | None], manifest: Path, monkeypatch
) -> None:
    working = manifest.parents[1] / "cwd"
    working.mkdir()
    monkeypatch.chdir(working)
    found = places(load_manifest(manifest, overrides))
    assert found == absolute(expected, manifest.parents[1])


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("org/model", "org/model"),
        ("gpt2", "gpt2"),
        ("./model", "folder/model"),
        ("../model", "model"),
        ("/x/model", "/x/model"),
        ("there", "folder/there"),
        ("there/inside", "folder/there/inside"),
        ("a/b/c", "folder/a/b/c"),
    ],
)
def test_models_are_folders_or_hub_ids(model: str, expected: str, manifest: Path) -> None:
    (manifest.parent / "there" / "inside").mkdir(parents=True)
    manifest.write_text(MINIMAL.replace("org/model", model), encoding="utf-8")
    found = value(load_manifest(manifest), "teacher.model")
    base = manifest.parents[1]
    assert found in (expected, str(base / expected))
    assert (found == expected) == (expected == model)


def test_variables(manifest: Path, monkeypatch) -> None:
    monkeypatch.setenv("CORPUS", "/corpora/x")
    monkeypatch.setenv("EMPTY", "")
    manifest.write_text(
        "name: a\ndata: {root: '${CORPUS}/y', train: {source: 'a${EMPTY}.en'}}\n"
        "teacher: {model: m, options: {list: ['${CORPUS}', $CORPUS, '$${CORPUS}', 'a{b}']}}\n",
        encoding="utf-8",
    )
    loaded = load_manifest(manifest, ["license=${CORPUS}!", "languages=['${CORPUS}']"])
    assert places(loaded)[0] == "/corpora/x/y/a.en"
    literal = ["/corpora/x", "$CORPUS", "${CORPUS}", "a{b}"]
    assert value(loaded, "teacher.options") == {"list": literal}
    assert loaded.license == "/corpora/x!"
    assert loaded.languages == ("/corpora/x",)


def test_a_value_of_a_variable_is_no_yaml(manifest: Path, monkeypatch) -> None:
    monkeypatch.setenv("TEXT", "[1, ${NOT_SET}]")
    assert load_manifest(manifest, ["license=${TEXT}"]).license == "[1, ${NOT_SET}]"


def test_default_stages_follow_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    init = "student: {init: {model: m}}\n"
    cases = {
        "name: a\ndata: {train: {source: a}}\nteacher: {model: m}\n": ["pseudolabel", "gold"],
        "name: a\ndata: {unlabeled: {source: a}}\nteacher: {model: m}\n": ["pseudolabel"],
        "name: a\ndata: {train: {source: a}}\n": ["gold"],
    }
    for text, names in cases.items():
        path.write_text(text + init)
        loaded = load_manifest(path)
        assert loaded.student is not None
        assert [stage.name for stage in loaded.student.stages] == names


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(
        [
            "no",
            "1e-4",
            "0x1",
            "~",
            "",
            " a ",
            "a: b",
            "# x",
            "- x",
            "${HOME}",
            "$${HOME}",
            "$$${A}",
            "<<",
            "2001-01-01",
        ]
    )
)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(options=st.dictionaries(st.text(min_size=1, max_size=6), TREES, max_size=4))
def test_the_resolved_copy_reads_back_to_the_same(
    tmp_path_factory, options: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("resolved") / "manifest.yaml"
    made = Manifest.model_validate(
        {
            "name": "a",
            "data": {"train": {"source": "/x/a.en", "target": "/x/a.fr"}},
            "teacher": {"model": "/m", "options": options},
            "prompt": {"template": "<s>{source}\n\u2028é: #<sep>"},
            "student": {"init": {"from_teacher": {"layers": 2}}},
        }
    )
    write_manifest(made, path)
    again = load_manifest(path)
    assert again == made
    assert json.dumps(again.model_dump(mode="json")) == json.dumps(made.model_dump(mode="json"))


def test_the_resolved_copy_does_not_depend_on_where_it_lies(manifest: Path, tmp_path: Path) -> None:
    (manifest.parent / "org").mkdir()
    loaded = load_manifest(manifest, ["candidates_from=other"])
    copy = tmp_path / "else" / "where" / "manifest.yaml"
    write_manifest(loaded, copy)
    assert load_manifest(copy) == loaded


@pytest.mark.parametrize("text", ["", "null", "3", "- a", "a"])
def test_a_manifest_is_a_mapping(text: str, manifest: Path) -> None:
    manifest.write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError, match="a manifest is a mapping of sections"):
        load_manifest(manifest)


KEYS = st.sampled_from(
    [*Manifest.model_fields, "train", "source", "path", "root"]
) | st.sampled_from(
    ["options", "stages", "init", "config", "max_new_tokens", "rules", "0", "1", "x", ""]
)
VALUES = st.text(max_size=6) | st.sampled_from(
    [
        "{}",
        "[]",
        "[{}]",
        "{a: {b: 1}}",
        "null",
        "1",
        "[1, x]",
        "{1: 2}",
        "&a [*a]",
        "!!set {a}",
        "x: y",
    ]
)


@settings(max_examples=300, deadline=None)
@given(overrides=st.lists(st.tuples(st.lists(KEYS, min_size=1, max_size=4), VALUES), max_size=3))
def test_whatever_is_set_is_read_or_refused(overrides: Any, tmp_path_factory) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    if not path.exists():
        path.write_text(MINIMAL + STAGES, encoding="utf-8")
    with suppress(ManifestError):
        load_manifest(path, [f"{'.'.join(keys)}={text}" for keys, text in overrides])


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("a:[]{}&*!|>-?#'\"\n\t ,%@`\x85\u2028é<"), max_size=24))
def test_whatever_is_written_is_read_or_refused(text: str, tmp_path_factory) -> None:
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    assert "\n" not in str(caught.value)


OWN = "evaluate.metrics=[bleu, {own: {command: python score.py}}, {far: {command: x, folder: /y}}]"


def test_commands_start_where_they_were_written(manifest: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifest.write_text(MINIMAL + "evaluate: {metrics: [{own: {command: python score.py}}]}\n")
    read = load_manifest(manifest)
    assert read.evaluate.programs()["own"].folder == str(manifest.parent)
    programs = load_manifest(manifest, [OWN]).evaluate.programs()
    assert [program.folder for program in programs.values()] == [str(tmp_path), "/y"]
    write_manifest(read, tmp_path / "copy.yaml")
    assert load_manifest(tmp_path / "copy.yaml") == read
