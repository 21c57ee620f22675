"""The demo's corpus: the same on every machine, real French, and no leak between its splits."""

import gzip
import hashlib
import importlib.util
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

DEMO = Path(__file__).parent.parent / "manifests" / "demo"


def load(name):
    """A module of the demo, which is no package."""
    spec = importlib.util.spec_from_file_location(f"demo_{name}", DEMO / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


corpus = load("corpus")
LEXICON = corpus.Lexicon.load()
NOUNS = {noun.english: noun for noun in LEXICON.nouns}
ADJECTIVES = {adjective.english: adjective for adjective in LEXICON.adjectives}
VERBS = {verb.english: verb for verb in LEXICON.verbs}
DETERMINERS = {determiner.english: determiner for determiner in LEXICON.determiners}


@pytest.fixture(scope="module")
def drawn():
    """Every sentence of the corpus, with its split."""
    return list(corpus.sentences(corpus.SIZES))


def test_the_corpus_is_the_same_everywhere(drawn):
    text = "\n".join(f"{split}\t{s.english}\t{s.french}" for split, s in drawn)
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == "8ce7a3ce47dc60617bf3dda50bb93f67f60494dbf7fbd1173d2f94ef0adb74f3"


def test_another_seed_makes_another_corpus():
    sizes = {"train": 20}
    first, again, other = (list(corpus.sentences(sizes, seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_splits_have_their_sizes_and_share_no_source(drawn):
    assert Counter(split for split, _ in drawn) == corpus.SIZES
    assert len({sentence.english for _, sentence in drawn}) == len(drawn)


def test_a_source_has_one_translation():
    """No two readings: a plural that looks like its singular would make the gold a guess."""
    assert [noun for noun in LEXICON.nouns if noun.english == noun.english_plural] == []


def test_held_out_pairs_never_meet_in_training(drawn):
    for split, sentence in drawn:
        assert any(map(corpus.held_out, sentence.pairs)) == (split in corpus.HELD)


def test_training_knows_the_words_that_the_test_combines(drawn):
    known = {w for split, s in drawn if split == "train" for w in re.findall(r"\w+", s.french)}
    met = [w for split, s in drawn if split == "test" for w in re.findall(r"\w+", s.french)]
    assert sum(word in known for word in met) / len(met) > 0.99


def test_sentences_look_like_sentences(drawn):
    for _, sentence in drawn:
        for text in (sentence.english, sentence.french):
            assert re.fullmatch(r"[A-ZÀÉÈÊÎÔ][\w' ,-]*\.", text)
            assert "  " not in text
            assert len(text.split()) <= 40


def test_french_neighbours_have_met(drawn):
    apart = re.compile(
        rf"\b([lndLND]e|la|La|que|[Cc]e|[msMS]a) {corpus.VOWEL}|\b(de|à) les?\b|\bde des\b", re.I
    )
    assert [s.french for _, s in drawn if apart.search(s.french)] == []


NOUN_PHRASES = [
    # determiner, adjective, noun, plural, negated, English, French before neighbours meet
    ("the", "big", "dog", False, False, "the big dog", "le grand chien"),
    ("the", "red", "house", False, False, "the red house", "la maison rouge"),
    ("some", "small", "mouse", True, False, "some small mice", "de petites souris"),
    ("some", "black", "mouse", True, False, "some black mice", "des souris noires"),
    ("some", "black", "mouse", True, True, "any black mice", "de souris noires"),
    ("a", None, "tree", False, True, "a tree", "de arbre"),
    ("this", "old", "tree", False, False, "this old tree", "ce vieil arbre"),
    ("these", "old", "tree", True, False, "these old trees", "ces vieux arbres"),
    ("many", "happy", "queen", True, False, "many happy queens", "beaucoup de reines heureuses"),
    ("two", "wooden", "chair", True, False, "two wooden chairs", "deux chaises en bois"),
]


@pytest.mark.parametrize(
    ("determiner", "adjective", "noun", "plural", "negated", "english", "french"), NOUN_PHRASES
)
def test_noun_phrases(determiner, adjective, noun, plural, negated, english, french):
    adjective = ADJECTIVES[adjective] if adjective else None
    words = (NOUNS[noun], adjective, DETERMINERS[determiner], plural, negated)
    assert corpus._english_noun(*words) == english
    assert corpus._french_noun(*words) == french


VERB_GROUPS = [
    # subject, plural, verb, tense, negation, English, French
    ("dog", False, "see", "present", "", "sees", "voit"),
    ("dog", True, "see", "present", "not", "do not see", "ne voient pas"),
    ("girl", False, "take", "past", "", "took", "a pris"),
    ("girl", True, "take", "past", "never", "never took", "n'ont jamais pris"),
    ("girl", False, "arrive", "past", "", "arrived", "est arrivée"),
    ("girl", True, "come back", "past", "not", "did not come back", "ne sont pas revenues"),
    ("boy", True, "fall", "past", "", "fell", "sont tombés"),
    ("king", False, "buy", "future", "not", "will not buy", "n'achètera pas"),
    ("king", True, "look for", "future", "", "will look for", "chercheront"),
    ("king", False, "look for", "present", "never", "never looks for", "ne cherche jamais"),
]


@pytest.mark.parametrize(
    ("noun", "plural", "verb", "tense", "negation", "english", "french"), VERB_GROUPS
)
def test_verb_groups(noun, plural, verb, tense, negation, english, french):
    subject = corpus.Subject(corpus.NOTHING, NOUNS[noun], plural)
    assert corpus._english_verb(VERBS[verb], tense, plural, negation) == english
    group = corpus._french_verb(VERBS[verb], tense, subject, negation)
    assert corpus._neighbours(group, corpus.FRENCH) == french


NEIGHBOURS = [
    ("près de le jardin", "près du jardin"),
    ("près de les îles", "près des îles"),
    ("près de le hôtel", "près de l'hôtel"),
    ("près de des maisons", "près de maisons"),
    ("près de de grands jardins", "près de grands jardins"),
    ("à le marché", "au marché"),
    ("à la école", "à l'école"),
    ("ma amie", "mon amie"),
    ("ce homme", "cet homme"),
    ("parce que elles ne aiment pas de œufs", "parce qu'elles n'aiment pas d'œufs"),
    ("beaucoup de arbres", "beaucoup d'arbres"),
    ("la lampe de la salle", "la lampe de la salle"),
]


@pytest.mark.parametrize(("apart", "together"), NEIGHBOURS)
def test_neighbouring_words(apart, together):
    assert corpus._neighbours(apart, corpus.FRENCH) == together


def test_files_are_line_aligned_and_byte_for_byte_repeatable(tmp_path):
    sizes = {"train": 30, "unlabeled": 5, "validation": 3, "test": 4}
    for folder in ("first", "second"):
        corpus.write_corpus(tmp_path / folder, sizes)
    for name, rows in sizes.items():
        for language in ("en",) if name == "unlabeled" else ("en", "fr"):
            file = f"{name}.{language}.gz"
            packed = (tmp_path / "first" / file).read_bytes()
            assert packed == (tmp_path / "second" / file).read_bytes()
            assert len(gzip.decompress(packed).decode().splitlines()) == rows
