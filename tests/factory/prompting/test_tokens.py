"""Tokens as text: what each id adds to a text, for every family of tokenizers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from factory.prompting.tokens import keep_tokens, token_table
from factory.query import fence
from factory.verify import verify
from tests.runs import add_samples, add_tokens, make_run

BYTES = {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
PIECES = {"<unk>": 0, "<s>": 1, "</s>": 2, **BYTES, "▁le": 259, "▁chat": 260, "s": 261, "▁▁": 262}


def llama_like() -> PreTrainedTokenizerFast:
    """As Llama 2's: blanks as ▁, bytes as <0x0A>, the first blank stripped when a text is read."""
    made = Tokenizer(models.BPE(PIECES, [], byte_fallback=True, unk_token="<unk>"))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return fast(made)


def fast(made: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def metaspace() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({"</s>": 0, "▁le": 1, "▁chat": 2, "s": 3}, "</s>"))
    made.decoder = decoders.Metaspace()
    return fast(made)


def wordpiece() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordPiece({"</s>": 0, "le": 1, "chat": 2, "##s": 3}, unk_token="</s>"))
    made.decoder = decoders.WordPiece(cleanup=False)
    return fast(made)


def suffixed() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE({"</s>": 0, "le</w>": 1, "chat": 2, "s</w>": 3}, []))
    made.decoder = decoders.BPEDecoder("</w>")
    return fast(made)


def bare() -> PreTrainedTokenizerFast:
    return fast(Tokenizer(models.WordLevel({"</s>": 0, "le": 1, "chat": 2, "s": 3}, "</s>")))


TOLD = [
    pytest.param(llama_like, [259, 260, 261], ["▁le", "▁chat", "s"], " le chats", id="bytes"),
    pytest.param(llama_like, [3 + 0xC3, 3 + 0xA9], [r"\xc3", r"\xa9"], "é", id="two bytes"),
    pytest.param(llama_like, [3 + 0x0A, 262, 2], ["\n", "▁▁", "</s>"], "\n  </s>", id="blanks"),
    pytest.param(metaspace, [1, 2, 3], ["▁le", "▁chat", "s"], " le chats", id="metaspace"),
    pytest.param(wordpiece, [1, 2, 3], ["▁le", "▁chat", "s"], " le chats", id="wordpiece"),
    pytest.param(suffixed, [1, 2, 3], ["le▁", "chat", "s▁"], "le chats ", id="suffixed"),
    pytest.param(bare, [1, 2, 3], ["le", "chat", "s"], "lechats", id="bare"),
]


@pytest.mark.parametrize(("make", "ids", "tokens", "text"), TOLD)
def test_a_token_is_what_its_decoder_makes_of_it(make, ids, tokens, text):
    table = token_table(make())
    assert [table["token"][i].as_py() for i in ids] == tokens
    assert b"".join(table["bytes"][i].as_py() for i in ids).decode() == text
    if make is not bare:  # no decoder joins with blanks
        assert make().decode(ids, clean_up_tokenization_spaces=False).strip() == text.strip()


@settings(deadline=None, max_examples=60)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_of_a_byte_level_tokenizer_give_the_text_back(tiny_tokenizer, text):
    spelled = token_table(tiny_tokenizer)["bytes"].to_pylist()
    ids = tiny_tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert b"".join(spelled[i] for i in ids).decode() == text


def test_added_tokens_are_written_as_they_are_and_gaps_stay_empty(tiny_tokenizer):
    made = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
    made.add_tokens([AddedToken("<façon é>", special=False, normalized=False)])
    found = token_table(fast(made)).to_pylist()
    assert (found[-1]["token"], found[-1]["bytes"]) == ("<façon▁é>", "<façon é>".encode())
    gapped = fast(Tokenizer(models.WordLevel({"</s>": 0, "le": 3}, "</s>")))
    assert [row["token"] for row in token_table(gapped).to_pylist()] == ["</s>", None, None, "le"]


def test_tokens_are_kept_once_a_tokenizer_and_recorded(tmp_path, tiny_tokenizer):
    run = make_run(tmp_path / "run")
    add_samples(run, [{"sample_id": "a", "source": "x"}])
    keep_tokens(run, tiny_tokenizer, "print")
    [file] = run.files("tokens")
    assert file["rows"] == len(tiny_tokenizer)
    written = run.path(file["path"]).stat().st_mtime_ns
    keep_tokens(run, tiny_tokenizer, "print")
    assert run.path(file["path"]).stat().st_mtime_ns == written
    keep_tokens(run, metaspace(), "another")
    assert [record["rows"] for record in run.files("tokens")] == [4]
    assert verify(run)["problems"] == []
    assert verify(run)["files"] == 2


SQL = [
    ("token_text(1)", "▁le"),
    ("token_text(9)", "<9>"),
    ("token_text(NULL)", None),
    ("token_list([1, 9, 3])", ["▁le", "<9>", "s"]),
    ("token_list([]::INTEGER[])", []),
    ("tokens_text([1, 2, 3, 0])", " le chats</s>"),
    ("tokens_text([2, 9])", " chat<9>"),
    ("tokens_text([]::INTEGER[])", ""),
    ("tokens_text(NULL::INTEGER[])", None),
]


@pytest.mark.parametrize(("asked", "answer"), SQL)
def test_tokens_in_sql(tmp_path, asked, answer):
    run = make_run(tmp_path / "run")
    add_samples(run, [{"sample_id": "a", "source": "x"}])
    keep_tokens(run, metaspace(), "print")
    assert fence.select(run, f"SELECT {asked}").fetchall() == [(answer,)]


def test_half_a_character_and_a_run_without_tokens(tmp_path):
    run = make_run(tmp_path / "run")
    assert fence.select(run, "SELECT token_text(5), tokens_text([5, 6])").fetchall() == [
        ("<5>", "<5><6>")
    ]
    add_samples(run, [{"sample_id": "a", "source": "x"}])
    keep_tokens(run, llama_like(), "print")
    ids = [259, 3 + 0xC3, 3 + 0xA9, 260, 3 + 0xC3]
    found = fence.select(run, f"SELECT tokens_text({ids[:4]}), tokens_text({ids})").fetchall()
    assert found == [(" leé chat", r" le\xc3\xa9 chat\xc3")]


def test_a_wide_vocabulary_costs_nothing_that_grows_with_the_rows(tmp_path):
    run = make_run(tmp_path / "run")
    add_samples(run, [{"sample_id": "a", "source": "x"}])
    add_tokens(run, (f"▁{i}" for i in range(150_000)))
    sql = (
        "SELECT count(*), max(tokens_text([i, 149999 - i, 150000])) FILTER (i = 7) "
        "FROM range(100000) t(i) WHERE token_text(i) <> ''"
    )
    assert fence.select(run, sql).fetchall() == [(100_000, " 7 149992<150000>")]
