"""How the sections say that held-out sources are decoded, and what old keys are made of."""

from __future__ import annotations

from factory.decoding import Generate
from factory.evaluation import BEAM, Evaluate
from factory.training import Student

STOPS = {"max_new_tokens": 9, "stop": ("x",), "first_token": "y", "repetition_penalty": 1.2}


def test_the_search_is_the_sections_and_all_else_is_the_teachers():
    sampled = Generate(decoding="sample", num_return=8, temperature=0.7, **STOPS)
    assert Evaluate().searched(sampled) == Generate(**STOPS)
    beam = Evaluate(decoding="beam", beam_width=6, length_penalty=0.6, early_stopping=True)
    wanted = {"beam_width": 6, "length_penalty": 0.6, "early_stopping": True}
    assert beam.searched(sampled) == Generate(decoding="beam", **wanted, **STOPS)
    assert Evaluate(decoding="beam").searched(Generate(decoding="beam", num_return=4)) == Generate(
        decoding="beam"
    )


def test_keys_that_came_later_are_no_part_of_old_digests():
    """Literal: a run made before `auto` stands."""
    assert Evaluate().model_dump(mode="json", exclude=set(BEAM)) == {
        "splits": ["test"],
        "systems": ["teacher", "student"],
        "engine": None,
        "decoding": "greedy",
        "metrics": ["bleu", "chrf"],
        "folds": 5,
    }
    tree = {"init": {"model": "m"}, "stages": [{"name": "gold", "data": "gold"}]}
    assert "validate_engine" not in Student.model_validate(tree).model_dump(mode="json")
