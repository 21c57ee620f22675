"""Sources on disk: every format and compression, refusals with their place, and streaming."""

from __future__ import annotations

import gzip
import hashlib
import itertools
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory.errors import SourceError
from factory.manifest import Split
from factory.sources import Refusal, Row, content_digest, read_split, split_files

PLAIN = {
    "jsonl": '{"en": "a dog", "fr": "un chien", "n": 1}\n'
    '{"en": "two\\ncats", "fr": null, "n": 2}\n',
    "tsv": "en\tfr\tn\na dog\tun chien\t1\na \"cat\t'un' chat\t2\n",
    "csv": 'en,fr,n\na dog,un chien,1\n"two\n""cats""","deux, chats",2\n',
}
READ = {
    "jsonl": [(1, "a dog", "un chien", {"n": 1}), (2, "two\ncats", None, {"n": 2})],
    "tsv": [(2, "a dog", "un chien", {"n": "1"}), (3, 'a "cat', "'un' chat", {"n": "2"})],
    "csv": [(2, "a dog", "un chien", {"n": "1"}), (4, 'two\n"cats"', "deux, chats", {"n": "2"})],
}
PACK = {"": bytes, ".gz": gzip.compress, ".zst": partial(pa.compress, codec="zstd", asbytes=True)}


def put(path: Path, data: str | bytes) -> str:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def columns(path: str, **names: str | None) -> Split:
    return Split.model_validate({"path": path, "source": "en", "target": "fr"} | names)


def read(split: Split) -> list[Row | Refusal]:
    return list(read_split(split))


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("form", PLAIN)
def test_columns(form: str, packing: str, tmp_path: Path) -> None:
    file = put(tmp_path / f"rows.{form}{packing}", PACK[packing](PLAIN[form].encode()))
    assert read(columns(file)) == [
        Row(file, line, source, gold, None, meta) for line, source, gold, meta in READ[form]
    ]


@pytest.mark.parametrize("packing", PACK)
def test_line_aligned(packing: str, tmp_path: Path) -> None:
    source = put(tmp_path / f"a.en{packing}", PACK[packing](b"a dog\na cat"))
    target = put(tmp_path / f"a.fr{packing}", PACK[packing](b"un chien\nun chat\n"))
    assert read(Split(source=source, target=target)) == [
        Row(source, 1, "a dog", "un chien", None, {}),
        Row(source, 2, "a cat", "un chat", None, {}),
    ]


def test_several_compressed_members_are_one_file(tmp_path: Path) -> None:
    """`cat a.gz b.gz` and parallel compressors write more than one member or frame."""
    for packing in (".gz", ".zst"):
        parts = b"".join(PACK[packing](text) for text in (b"one\n", b"two\n", b"three\n"))
        file = put(tmp_path / f"many.txt{packing}", parts)
        assert [row.source for row in read(Split(source=file))] == ["one", "two", "three"]


def test_sources_alone_have_no_gold(tmp_path: Path) -> None:
    file = put(tmp_path / "mono.txt", "a dog\n")
    assert read(Split(source=file)) == [Row(file, 1, "a dog", None, None, {})]


def test_parquet_keeps_the_other_fields(tmp_path: Path) -> None:
    file = str(tmp_path / "rows.parquet")
    rows = [{"en": "a dog", "fr": "un chien", "doc": {"id": 7, "tags": ["x"]}, "w": 0.5}]
    pq.write_table(pa.Table.from_pylist(rows), file)
    meta = {"doc": {"id": 7, "tags": ["x"]}, "w": 0.5}
    assert read(columns(file)) == [Row(file, 1, "a dog", "un chien", None, meta)]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a\r\nb\r\n", ["a", "b"]),
        ("a\rb\nc\n", ["a\rb", "c"]),
        ("a\u2028b\u2029c\u0085d\x0be\x1cf\n", ["a\u2028b\u2029c\u0085d\x0be\x1cf"]),
        (" padded\t\n", [" padded\t"]),
        ("\ufeffmarked\n", ["marked"]),
    ],
)
def test_lines_end_at_lf_alone(text: str, lines: list[str], tmp_path: Path) -> None:
    file = put(tmp_path / "a.txt", text)
    assert [row.source for row in read(Split(source=file))] == lines


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    for form in ("jsonl", "tsv", "csv"):
        file = put(tmp_path / f"a.{form}", b"\xef\xbb\xbf" + PLAIN[form].encode())
        assert next(row.source for row in read(columns(file))) == "a dog"


def test_crlf_in_columns(tmp_path: Path) -> None:
    for form in ("tsv", "csv"):
        file = put(tmp_path / f"a.{form}", "en,fr\r\na,b\r\nc,d\r\n".replace(",", _comma(form)))
        assert [(row.source, row.gold) for row in read(columns(file))] == [("a", "b"), ("c", "d")]


def _comma(form: str) -> str:
    return "\t" if form == "tsv" else ","


@pytest.mark.parametrize(
    ("name", "data", "line", "reason"),
    [
        ("a.jsonl", '{"en": "a", "fr": "b"}\n{"en": }\n', 2, "is not JSON"),
        ("a.jsonl", '{"en": "a", "fr": "b"}\n\n', 2, "is an empty line"),
        ("a.jsonl", "[1]\n", 1, "is not a JSON object"),
        ("a.jsonl", '{"en": 3, "fr": "b"}\n', 1, "source is not text"),
        ("a.jsonl", '{"en": null, "fr": "b"}\n', 1, "source is not text"),
        ("a.jsonl", '{"en": "a", "fr": ["b"]}\n', 1, "target is not text"),
        ("a.jsonl", '{"en": "  ", "fr": "b"}\n', 1, "source is empty"),
        ("a.jsonl", '{"en": "a", "fr": ""}\n', 1, "target is empty"),
        ("a.jsonl", '{"enn": "a", "fr": "b"}\n', 1, "has no field 'en': did you mean 'enn'?"),
        ("a.jsonl", '{"en": "a"}\n', 1, "has no field 'fr'"),
        ("a.jsonl", '{"en": "\\ud800", "fr": "b"}\n', 1, "'en' is not valid UTF-8"),
        ("a.jsonl", b'{"en": "a\xff", "fr": "b"}\n', 1, "'en' is not valid UTF-8"),
        ("a.jsonl", b'{"en": "a", "fr": "b", "n": "\xff"}\n', 1, "field 'n' is not valid UTF-8"),
        (
            "a.jsonl",
            '{"en": "a", "fr": "b", "n": ["\\udcff"]}\n',
            1,
            "field 'n' is not valid UTF-8",
        ),
        ("a.jsonl", '{"en": "a", "fr": "b", "n": ' + "9" * 5000 + "}\n", 1, "is not JSON"),
        ("a.jsonl", "[" * 100_000 + "\n", 1, "is not JSON"),
        ("a.tsv", "en\tfr\na\n", 2, "has 1 fields where the header has 2"),
        ("a.tsv", "en\tfr\na\tb\tc\n", 2, "has 3 fields where the header has 2"),
        ("a.tsv", b"en\tfr\na\tb\xff\n", 2, "field 'fr' is not valid UTF-8"),
        ("a.csv", "en,fr\na,b,c\n", 2, "has 3 fields where the header has 2"),
        ("a.csv", "en,fr\n,b\n", 2, "source is empty"),
        ("a.csv", b"en,fr\n\xe9,b\n", 2, "'en' is not valid UTF-8"),
    ],
)
def test_refused_rows(name: str, data: str | bytes, line: int, reason: str, tmp_path: Path) -> None:
    file = put(tmp_path / name, data)
    refused = [entry for entry in read(columns(file)) if isinstance(entry, Refusal)]
    assert [(r.file, r.line) for r in refused] == [(file, line)]
    assert reason in refused[0].reason


@pytest.mark.parametrize(
    ("source", "target", "reasons"),
    [
        ("a\nb\nc\n", "x\n", [("en", 2, "fr is shorter"), ("en", 3, "fr is shorter")]),
        ("a\n", "x\ny\nz\n", [("fr", 2, "en is shorter"), ("fr", 3, "en is shorter")]),
        ("", "x\n", [("fr", 1, "en is shorter")]),
        ("a\n\nc\n", "x\ny\nz\n", [("en", 2, "source is empty")]),
        ("a\nb\n", "x\n \n", [("en", 2, "target is empty")]),
        (b"a\n\xff\n", "x\ny\n", [("en", 2, "source is not valid UTF-8")]),
        ("a\nb\n", b"x\n\xc3\n", [("en", 2, "target is not valid UTF-8")]),
        ("\0end of file\0\nb\n", "\0end of file\0\ny\n", []),
    ],
)
def test_refused_lines(
    source: str | bytes, target: str | bytes, reasons: list[tuple[str, int, str]], tmp_path: Path
) -> None:
    split = Split(source=put(tmp_path / "a.en", source), target=put(tmp_path / "a.fr", target))
    refused = [entry for entry in read(split) if isinstance(entry, Refusal)]
    assert [(r.file[-2:], r.line) for r in refused] == [(side, line) for side, line, _ in reasons]
    for refusal, (_, _, reason) in zip(refused, reasons, strict=True):
        assert reason in refusal.reason


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (['{"en": "a", "key": "x"}'], "x"),
        (['{"en": "a", "key": 7}'], "7"),
        (['{"en": "a", "key": 0}'], "0"),
        (['{"en": "a", "key": ""}'], "field 'key' is empty"),
        (['{"en": "a", "key": null}'], "field 'key' is empty"),
        (['{"en": "a", "key": "\\ud800"}'], "field 'key' is not valid UTF-8"),
    ],
)
def test_user_ids(rows: list[str], expected: str, tmp_path: Path) -> None:
    file = put(tmp_path / "a.jsonl", "\n".join(rows))
    [entry] = read(columns(file, target=None, id="key"))
    assert (entry.key if isinstance(entry, Row) else entry.reason) == expected


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.xlsx", b"", "ending not known: use .jsonl, .json, .tsv, .csv, .parquet"),
        ("a", b"", "ending not known"),
        ("a.csv.gz", b"not gzip", "is damaged or cut short"),
        ("a.csv.zst", b"not zstd", "is damaged or cut short"),
        ("a.jsonl.gz", gzip.compress(b"{}\n" * 9000)[:-9], "is damaged or cut short"),
        ("a.jsonl.zst", PACK[".zst"](b"{}\n" * 9000)[:-3], "is damaged or cut short"),
        ("a.parquet", b"PAR1 no", "is damaged or cut short"),
        ("a.parquet", b"", "is damaged or cut short"),
        ("a.csv", b"", "the first line names the columns"),
        ("a.tsv", b"", "the first line names the columns"),
        ("a.csv", b'en,fr\n"a,b\nc,d\n', "mend the CSV"),
        ("a.csv", b'en,fr\n"a"b,c\n', "mend the CSV"),
        ("a.tsv", b"en\ten\na\tb\n", "'en': two columns have this name"),
        ("a.csv", b"fr,en,fr\na,b,c\n", "'fr': two columns have this name"),
        ("a.parquet.gz", b"", "Parquet is compressed inside: unpack it"),
    ],
)
def test_unusable_files(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    file = put(tmp_path / name, data)
    with pytest.raises(SourceError) as caught:
        read(columns(file))
    assert str(caught.value).startswith(file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_parquet_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    file = str(tmp_path / "rows.parquet")
    pq.write_table(pa.Table.from_pylist([{"eng": "a", "fr": "b"}] * 2), file)
    assert [(e.line, e.reason) for e in read(columns(file)) if isinstance(e, Refusal)] == [
        (1, "has no field 'en': did you mean 'eng'?"),
        (2, "has no field 'en': did you mean 'eng'?"),
    ]


def test_missing_files(tmp_path: Path) -> None:
    for split in (columns(str(tmp_path / "no.jsonl")), Split(source=str(tmp_path / "no.en"))):
        with pytest.raises(SourceError, match=r"no\.\w+: is missing: check the path and data.root"):
            read(split)
    with pytest.raises(SourceError, match="cannot be opened"):
        read(Split(source=str(tmp_path)))
    with pytest.raises(SourceError, match="cannot be opened"):
        read(Split(source="unheard-of://a.txt"))


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_compressed_files_are_streamed(packing: str, tmp_path: Path) -> None:
    """The first rows come before the end is looked at: here, the end is cut off."""
    whole = PACK[packing](b"".join(f"{n} {n * n}\n".encode() for n in range(200_000)))
    rows = read_split(Split(source=put(tmp_path / f"a.txt{packing}", whole[: len(whole) // 2])))
    assert [row.source for row in itertools.islice(rows, 2)] == ["0 0", "1 1"]
    with pytest.raises(SourceError, match="is damaged or cut short"):
        list(rows)


def test_plain_files_are_streamed(tmp_path: Path) -> None:
    file = put(tmp_path / "a.txt", "a dog\n")
    with open(file, "r+b") as stream:
        stream.truncate(1 << 40)  # the second line is a terabyte that takes no place on disk
    assert next(read_split(Split(source=file))) == Row(file, 1, "a dog", None, None, {})


def test_parquet_is_streamed(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"en": [f"{n}" for n in range(50_000)]}), file, row_group_size=5_000)
    whole = file.read_bytes()
    middle = slice(len(whole) // 2, len(whole) // 2 + 100)
    file.write_bytes(whole[: middle.start] + b"\0" * 100 + whole[middle.stop :])
    rows = read_split(columns(str(file), target=None))
    assert [row.source for row in itertools.islice(rows, 3)] == ["0", "1", "2"]
    with pytest.raises(SourceError, match="is damaged or cut short"):
        list(rows)


def test_parquet_strings_are_checked(tmp_path: Path) -> None:
    file = str(tmp_path / "a.parquet")
    text = pa.StringArray.from_buffers(
        1, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xc3\x28")
    )
    pq.write_table(pa.table({"en": text}), file)
    with pytest.raises(SourceError, match="is damaged or cut short"):
        read(columns(file, target=None))


def test_content_digest_is_of_the_stored_bytes(tmp_path: Path) -> None:
    file = put(tmp_path / "a.gz", gzip.compress(b"hello", mtime=0))
    assert content_digest(file) == hashlib.sha256(Path(file).read_bytes()).hexdigest()
    assert split_files(Split(source="a", target="b")) == ["a", "b"]
    assert split_files(columns(file)) == [file]
