"""A parallel corpus out of a small grammar: English to French with real agreement.

French asks for more than a dictionary: gender and number agree through articles, adjectives and
participles, adjectives stand before or after their noun, negation surrounds the verb, words elide
and contract. Some pairs of words (an adjective with its noun, a subject with its verb) never meet
in what is trained on; every validation and test sentence holds at least one of them. The unlabeled
split has no French: its pseudotargets are the teacher's alone.
"""

from __future__ import annotations

import gzip
import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from ruamel.yaml import YAML

T = TypeVar("T")
SIZES = {"train": 4000, "unlabeled": 2000, "validation": 300, "test": 500}
LEARNT, HELD = ("train", "unlabeled"), ("validation", "test")
HELD_OUT = 12  # one pair of words in so many is kept for validation and test
VOWEL = "[aeiouhàâéèêîôûœ]"

# What neighbouring words do to each other, in this order.
FRENCH = (
    (r"\bde (des|de) ", "de "),
    (rf"\b(l|qu)(?:e|a) (?={VOWEL})", r"\1'"),
    (rf"\b(n|d)e (?={VOWEL})", r"\1'"),
    (rf"\bce (?={VOWEL})", "cet "),
    (rf"\b([ms])a (?={VOWEL})", r"\1on "),
    (r"\bde le ", "du "),
    (r"\bde les ", "des "),
    (r"\bà le ", "au "),
    (r"\bà les ", "aux "),
)
ENGLISH = ((r"\ba (?=[aeiou])", "an "),)


class Noun(NamedTuple):
    """A noun in both languages; `kind` is p(erson), a(nimal), t(hing) or l (place)."""

    english: str
    english_plural: str
    french: str
    french_plural: str
    gender: str
    kind: str


class Adjective(NamedTuple):
    """An adjective, its French forms and where they stand."""

    english: str
    masculine: str
    before_vowel: str
    feminine: str
    masculine_plural: str
    feminine_plural: str
    place: str
    kinds: str


class Verb(NamedTuple):
    """A verb, its forms, and the kinds of object it takes (none: intransitive)."""

    english: str
    third: str
    past: str
    present: str
    present_plural: str
    participle: str
    future: str
    future_plural: str
    auxiliary: str
    objects: str


class Determiner(NamedTuple):
    """An article, possessive, demonstrative or number, and the grammatical number it takes."""

    english: str
    masculine: str
    feminine: str
    plural: str
    number: str


class Phrase(NamedTuple):
    """A stretch of a sentence in both languages, and the pairs of words that meet in it."""

    english: str
    french: str
    pairs: frozenset[tuple[str, str]] = frozenset()

    def __add__(self, other: Phrase) -> Phrase:  # type: ignore[override]
        """One phrase after the other."""
        english, french = f"{self.english} {other.english}", f"{self.french} {other.french}"
        return Phrase(english.strip(), french.strip(), self.pairs | other.pairs)


class Subject(NamedTuple):
    """A noun phrase that a verb can agree with."""

    phrase: Phrase
    noun: Noun
    plural: bool


NOTHING = Phrase("", "")


@dataclass(frozen=True)
class Lexicon:
    """The words of `lexicon.yaml`."""

    nouns: list[Noun]
    adjectives: list[Adjective]
    verbs: list[Verb]
    determiners: list[Determiner]
    prepositions: list[tuple[str, str]]
    times: list[tuple[str, str, str]]
    conjunctions: list[tuple[str, str]]

    @classmethod
    def load(cls) -> Lexicon:
        """Read the lexicon that lies beside this module."""
        path = Path(__file__).with_name("lexicon.yaml")
        tables = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        return cls(
            [Noun(*row) for row in tables["nouns"]],
            [Adjective(*row) for row in tables["adjectives"]],
            [Verb(*row) for row in tables["verbs"]],
            [Determiner(*row) for row in tables["determiners"]],
            [(en, fr) for en, fr in tables["prepositions"]],
            [(en, fr, tense) for en, fr, tense in tables["times"]],
            [(en, fr) for en, fr in tables["conjunctions"]],
        )


@dataclass
class Grammar:
    """Draws sentences. The same seed gives the same sentences, on any machine."""

    seed: int = 17
    words: Lexicon = field(default_factory=Lexicon.load)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)  # noqa: S311 - sentences, not secrets

    def sentence(self) -> Phrase:
        """One sentence with capital and full stop; its pairs say which words met."""
        english_time, french_time, tense = self._pick(self.words.times)
        body, subject = self._clause(tense)
        if self._chance(0.3):
            body += Phrase(*self._pick(self.words.conjunctions)) + self._second(tense, subject)
        time = Phrase(english_time, french_time)
        if not self._chance(0.5):
            return _finish(body)
        comma = Phrase(f"{english_time},", f"{french_time},")
        return _finish(comma + body if self._chance(0.5) else body + time)

    def _clause(self, tense: str) -> tuple[Phrase, Subject]:
        subject = self._noun_phrase("pa")
        phrase = subject.phrase
        if self._chance(0.15):
            relative = "who" if subject.noun.kind == "p" else "that"
            phrase += Phrase(relative, "qui") + self._verb_phrase(subject, tense)
        return phrase + self._verb_phrase(subject, tense), subject

    def _second(self, tense: str, first: Subject) -> Phrase:
        if self._chance(0.4):
            return self._clause(tense)[0]
        return _pronoun(first) + self._verb_phrase(first, tense)

    def _verb_phrase(self, subject: Subject, tense: str) -> Phrase:
        verb = self._pick(self.words.verbs)
        negation = self._pick(["not", "never"]) if self._chance(0.25) else ""
        pairs = frozenset({(subject.noun.english, verb.english)})
        phrase = Phrase(
            _english_verb(verb, tense, subject.plural, negation),
            _french_verb(verb, tense, subject, negation),
            pairs,
        )
        if verb.objects:
            phrase += self._noun_phrase(verb.objects, bool(negation)).phrase
        if not verb.objects or self._chance(0.2):
            phrase += self._place()
        return phrase

    def _place(self) -> Phrase:
        if self._chance(0.4):
            return NOTHING
        return Phrase(*self._pick(self.words.prepositions)) + self._noun_phrase("l").phrase

    def _noun_phrase(self, kinds: str, negated: bool = False) -> Subject:
        noun = self._pick([n for n in self.words.nouns if n.kind in kinds])
        determiner = self._pick(self.words.determiners)
        plural = determiner.number == "plural" or (
            determiner.number == "any" and self._chance(0.35)
        )
        fitting = [a for a in self.words.adjectives if noun.kind in a.kinds]
        adjective = self._pick(fitting) if self._chance(0.45) else None
        english = _english_noun(noun, adjective, determiner, plural, negated)
        french = _french_noun(noun, adjective, determiner, plural, negated)
        pairs = frozenset({(adjective.english, noun.english)} if adjective else ())
        return Subject(Phrase(english, french, pairs), noun, plural)

    def _pick(self, options: Sequence[T]) -> T:
        """Draw with a density that falls with the rank: rare words are part of the task."""
        draw = self.random.random()
        return options[int(len(options) * draw * draw)]

    def _chance(self, probability: float) -> bool:
        return self.random.random() < probability


def _english_noun(
    noun: Noun, adjective: Adjective | None, determiner: Determiner, plural: bool, negated: bool
) -> str:
    article = "any" if negated and determiner.english == "some" else determiner.english
    word = noun.english_plural if plural else noun.english
    return " ".join([article, *([adjective.english] if adjective else []), word])


def _french_noun(
    noun: Noun, adjective: Adjective | None, determiner: Determiner, plural: bool, negated: bool
) -> str:
    words = [noun.french_plural if plural else noun.french]
    if adjective:
        form = _adjective_form(adjective, noun, plural)
        words = [form, *words] if adjective.place == "before" else [*words, form]
    article = _article(determiner, noun, plural)
    indefinite = determiner.english in ("a", "some")
    fronted = plural and adjective is not None and adjective.place == "before"
    return " ".join(["de" if indefinite and (negated or fronted) else article, *words])


def _article(determiner: Determiner, noun: Noun, plural: bool) -> str:
    if plural:
        return determiner.plural
    return determiner.feminine if noun.gender == "f" else determiner.masculine


def _adjective_form(adjective: Adjective, noun: Noun, plural: bool) -> str:
    if noun.gender == "f":
        return adjective.feminine_plural if plural else adjective.feminine
    if plural:
        return adjective.masculine_plural
    return adjective.before_vowel if re.match(VOWEL, noun.french) else adjective.masculine


def _english_verb(verb: Verb, tense: str, plural: bool, negation: str) -> str:
    if tense == "future":
        return " ".join(["will", negation, verb.english]).replace("  ", " ")
    if negation == "not":
        present = "do" if plural else "does"
        return f"{'did' if tense == 'past' else present} not {verb.english}"
    present = verb.english if plural else verb.third
    return f"{negation} {verb.past if tense == 'past' else present}".strip()


def _french_verb(verb: Verb, tense: str, subject: Subject, negation: str) -> str:
    finite, participle = _french_forms(verb, tense, subject)
    if negation:
        finite = f"ne {finite} {'pas' if negation == 'not' else 'jamais'}"
    return f"{finite} {participle}".strip()


def _french_forms(verb: Verb, tense: str, subject: Subject) -> tuple[str, str]:
    """The finite verb and, in the past, its participle (which agrees after être)."""
    if tense == "present":
        return (verb.present_plural if subject.plural else verb.present), ""
    if tense == "future":
        return (verb.future_plural if subject.plural else verb.future), ""
    if verb.auxiliary == "avoir":
        return ("ont" if subject.plural else "a"), verb.participle
    agreement = ("e" if subject.noun.gender == "f" else "") + ("s" if subject.plural else "")
    return ("sont" if subject.plural else "est"), verb.participle + agreement


def _pronoun(subject: Subject) -> Phrase:
    feminine = subject.noun.gender == "f"
    french = ("elle" if feminine else "il") + ("s" if subject.plural else "")
    if subject.plural:
        return Phrase("they", french)
    if subject.noun.kind == "a":
        return Phrase("it", french)
    return Phrase("she" if feminine else "he", french)


def _finish(phrase: Phrase) -> Phrase:
    english, french = (
        _neighbours(text, rules)
        for text, rules in ((phrase.english, ENGLISH), (phrase.french, FRENCH))
    )
    return Phrase(_written(english), _written(french), phrase.pairs)


def _neighbours(text: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def _written(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def held_out(pair: tuple[str, str]) -> bool:
    """Whether two words are kept from meeting in the training split."""
    return zlib.crc32(" ".join(pair).encode()) % HELD_OUT == 0


def sentences(sizes: dict[str, int], seed: int = 17) -> Iterator[tuple[str, Phrase]]:
    """Draw distinct sentences, each with its split, until every split has its size."""
    grammar, left, seen = Grammar(seed), dict(sizes), set[str]()
    while any(left.values()):
        sentence = grammar.sentence()
        if sentence.english in seen:
            continue
        seen.add(sentence.english)
        splits = HELD if any(map(held_out, sentence.pairs)) else LEARNT
        split = max(splits, key=lambda name: left.get(name, 0))
        if left.get(split, 0):
            left[split] -= 1
            yield split, sentence


def write_corpus(folder: Path, sizes: dict[str, int] = SIZES, seed: int = 17) -> None:
    """Write <split>.en.gz and, but for the unlabeled split, a line-aligned <split>.fr.gz."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = list(sentences(sizes, seed))
    for split in sizes:
        phrases = [phrase for name, phrase in drawn if name == split]
        _write_lines(folder / f"{split}.en.gz", [phrase.english for phrase in phrases])
        if split != "unlabeled":
            _write_lines(folder / f"{split}.fr.gz", [phrase.french for phrase in phrases])


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write gzip without a time stamp, so that equal text makes equal bytes."""
    text = "".join(f"{line}\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
