"""What an objective says: its terms, what they need, and what is digested of it."""

from __future__ import annotations

import pytest

from factory.training import OVER_DISTRIBUTIONS, Objective, Stage

STAGE = {"name": "s", "data": "gold"}


@pytest.mark.parametrize(
    ("objective", "told"),
    [
        ({"ce": 1.0}, {"ce": 1.0, "forward_kl": 0.0}),
        ({"ce": 0.5, "forward_kl": 0.5, "jsd": 0.0}, {"ce": 0.5, "forward_kl": 0.5}),
        (
            {"jsd": 1, "jsd_beta": 0.2, "temperature": 1.0},
            {"ce": 0.0, "forward_kl": 0.0, "jsd": 1.0, "jsd_beta": 0.2},
        ),
        (
            {"hidden": 2, "hidden_layers": {0: 1}, "ce": 0.5},
            {"ce": 0.5, "forward_kl": 0.0, "hidden": 2.0, "hidden_layers": {"0": 1}},
        ),
    ],
)
def test_keys_that_came_later_leave_old_digests_standing(objective, told):
    assert (
        Stage.model_validate(STAGE | {"objective": objective}).model_dump(mode="json")["objective"]
        == told
    )


def test_what_is_told_can_be_read_back():
    told = {"ce": 0.5, "skew_kl": 0.5, "skew_alpha": 0.3, "instance_weights": "easy_first"}
    assert Objective.model_validate(told).model_dump(mode="json", exclude_unset=True) == told


def test_hidden_states_need_no_distributions():
    objective = Objective.model_validate({"hidden": 1.0, "hidden_layers": {"1": 3}})
    assert objective.terms == {"hidden": 1.0}
    assert objective.hidden_layers == {1: 3}
    assert (objective.distributions, objective.not_of_draws, objective.realised) == (
        [],
        None,
        False,
    )


def test_terms_stand_in_one_order():
    objective = Objective(atkd=0.2, forward_kl=0.3, ce=0.5)
    assert list(objective.terms.items()) == [("ce", 0.5), ("forward_kl", 0.3), ("atkd", 0.2)]
    assert objective.distributions == ["forward_kl", "atkd"]


@pytest.mark.parametrize("name", OVER_DISTRIBUTIONS)
def test_draws_tell_the_forward_kl_and_the_cross_entropy_alone(name: str):
    objective = Objective.model_validate({name: 1.0})
    assert objective.not_of_draws == (None if name in ("forward_kl", "soft_ce") else name)


@pytest.mark.parametrize(
    ("objective", "realised"),
    [
        ({"forward_kl": 1.0}, False),
        ({"atkd": 1.0}, True),
        ({"forward_kl": 1.0, "instance_weights": "easy_first"}, True),
    ],
)
def test_what_reads_the_target_tokens_themselves(objective, realised: bool):
    assert Objective.model_validate(objective).realised == realised
