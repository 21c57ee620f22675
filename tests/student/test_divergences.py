"""Divergences: dense definitions in float64, identities, other people's code, and no NaN."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from factory.training import OVER_DISTRIBUTIONS, TEMPERED
from student import divergences
from student.divergences import NOTHING
from student.objectives import Realised, Sparse, Weights, events, per_token, predicted
from tests.student.test_objectives import K, N, V, case, gradient, narrowed, top

BETA, ALPHA = 0.3, 0.1
Definition = Callable[[Tensor, Tensor], Tensor]


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    middle = BETA * p + (1 - BETA) * q
    return BETA * kl(p, middle) + (1 - BETA) * kl(q, middle)


# In probabilities, as the papers write them.
DEFINITIONS: dict[str, Definition] = {
    "forward_kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "jsd": jensen_shannon,
    "skew_kl": lambda p, q: kl(p, ALPHA * p + (1 - ALPHA) * q),
    "skew_reverse_kl": lambda p, q: kl(q, (1 - ALPHA) * p + ALPHA * q),
    "tvd": lambda p, q: 0.5 * (p - q).abs().sum(-1),
    "soft_ce": lambda p, q: -(p * q.log()).sum(-1),
}
FUNCTIONS: dict[str, Definition] = {
    "forward_kl": divergences.forward_kl,
    "reverse_kl": divergences.reverse_kl,
    "jsd": lambda p, q: divergences.jsd(p, q, BETA),
    "skew_kl": lambda p, q: divergences.skew_kl(p, q, ALPHA),
    "skew_reverse_kl": lambda p, q: divergences.skew_reverse_kl(p, q, ALPHA),
    "tvd": divergences.tvd,
    "soft_ce": divergences.soft_ce,
}
# name: at p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2), α = 0.1 and β = 0.3, worked out by hand.
GOLDEN = {
    "forward_kl": 0.1732867951,  # ¼·ln 2
    "reverse_kl": 0.1732867951,
    "tvd": 0.25,
    "soft_ce": 1.2130075660,  # ½·ln 4 + ¼·ln 4 + ¼·ln 2
}
names = pytest.mark.parametrize("name", DEFINITIONS)


def weights_of(name: str, temperature: float = 1.0) -> Weights:
    return Weights({name: 1.0}, 0.0, BETA, ALPHA, temperature)


def realised(n: int, logprob: Tensor | None = None) -> Realised:
    given = torch.full((n,), -1.0, dtype=torch.float64) if logprob is None else logprob
    one = torch.ones(n, dtype=torch.float64)
    return Realised(given, one, one, one)


def term(name: str, logits: Tensor, teacher: Sparse, temperature: float = 1.0) -> Tensor:
    n = len(logits)
    targets = teacher.ids[:, 0]
    told = realised(n, teacher.logprobs[:, 0])
    mask = torch.ones(n, dtype=torch.bool)
    return per_token(logits, targets, teacher, mask, weights_of(name, temperature), told)[name]


def coarse(full: Tensor, ids: Tensor) -> Tensor:
    """Probabilities of the tokens `ids` and of all others together."""
    inside = full.gather(-1, ids)
    return torch.cat([inside, 1 - inside.sum(-1, keepdim=True)], -1)


@names
def test_over_a_whole_vocabulary_each_is_its_definition(name: str):
    logits, full, _ = case()
    q = logits.log_softmax(-1)
    got, wanted = FUNCTIONS[name](full, q), DEFINITIONS[name](full.exp(), q.exp())
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(gradient(got, logits), gradient(wanted, logits))


@pytest.mark.parametrize("name", GOLDEN)
def test_each_has_the_value_worked_out_by_hand(name: str):
    p = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log()
    q = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64).log()
    assert FUNCTIONS[name](p, q).item() == pytest.approx(GOLDEN[name], abs=1e-9)


@names
def test_over_a_cache_each_is_its_definition_with_one_bucket(name: str):
    logits, full, teacher = case()
    got = term(name, logits, teacher)
    q = coarse(logits.softmax(-1), teacher.ids)
    wanted = DEFINITIONS[name](coarse(full.exp(), teacher.ids), q)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(gradient(got, logits), gradient(wanted, logits))


@names
def test_all_tokens_stored_is_the_whole_distribution(name: str):
    logits, full, teacher = case(k=V)
    got = term(name, logits, teacher)
    q = logits.softmax(-1)
    torch.testing.assert_close(got, DEFINITIONS[name](full.exp(), q), atol=1e-5, rtol=0)
    should = gradient(DEFINITIONS[name](full.exp(), logits.softmax(-1)), logits)
    torch.testing.assert_close(gradient(got, logits), should, atol=1e-5, rtol=0)


@given(st.integers(1, V - 1), st.integers(0, 99))
def test_a_bucket_never_tells_them_further_apart(k: int, seed: int):
    """Data processing: every f-divergence of coarser distributions is at most the finer ones'."""
    logits, full, _ = case(seed=seed)
    p, q = events(predicted(logits, full.argmax(-1), top(full, k)), top(full, k))
    for name in DEFINITIONS.keys() - {"soft_ce"}:
        at_most = FUNCTIONS[name](full, logits.log_softmax(-1)) + 1e-6
        assert (FUNCTIONS[name](p, q) <= at_most).all(), name


@pytest.mark.parametrize("k", [1, K, V - 1])
def test_the_kl_splits_exactly(k: int):
    """KL = KL(binary) + p_S·KL(stored, renormalised) + (1 − p_S)·KL(rest, renormalised)."""
    logits, full, teacher = case(k=k)
    every = logits.log_softmax(-1)
    stored = torch.zeros_like(full, dtype=torch.bool).scatter_(-1, teacher.ids, True)
    p_in, q_in = (x.masked_fill(~stored, NOTHING) for x in (full, every))
    p_out, q_out = (x.masked_fill(stored, NOTHING) for x in (full, every))
    held = p_in.logsumexp(-1)
    binary = divergences.target_and_others(held, q_in.logsumexp(-1))
    outer = (1 - held.exp()) * divergences.among_others(p_out, q_out)
    inner = held.exp() * divergences.among_others(p_in, q_in)
    whole = divergences.forward_kl(full, every)
    torch.testing.assert_close(binary + inner + outer, whole, atol=1e-12, rtol=0)
    bucket = term("forward_kl", logits, teacher)
    torch.testing.assert_close(bucket + outer, whole, atol=1e-12, rtol=0)


def decoupled(p: Tensor, q: Tensor, stored: list[int], target: int) -> tuple[Tensor, Tensor]:
    """TKD and DKD of one position, in probabilities: the target, the other stored tokens, a bucket.

    Where every other token is stored there is no bucket.
    """
    others = [token for token in stored if token != target]
    tkd = kl(torch.stack([p[target], 1 - p[target]]), torch.stack([q[target], 1 - q[target]]))
    sides = []
    for x in (p, q):
        inside = x[others] / (1 - x[target])
        bucket = (1 - inside.sum())[None] if len(others) < V - 1 else inside[:0]
        sides.append(torch.cat([inside, bucket]))
    return tkd, kl(*sides)


@pytest.mark.parametrize("k", [1, K, V - 1])
def test_atkd_is_its_definition_whether_the_target_is_stored_or_not(k: int):
    logits, full, teacher = case(k=k)
    targets = torch.where(torch.arange(N) % 2 == 0, full.argmax(-1), full.argmin(-1))
    p, q = full.exp(), logits.softmax(-1)
    parts = [decoupled(p[i], q[i], teacher.ids[i].tolist(), int(targets[i])) for i in range(N)]
    tkd, dkd = (torch.stack(part) for part in zip(*parts, strict=True))
    hard = torch.tensor([0, 2, 0, 2, 2, 0, 0], dtype=torch.float64)
    told = realised(N, full.gather(-1, targets[:, None])[:, 0])._replace(easy=2 - hard, hard=hard)
    mask, weights = torch.ones(N, dtype=torch.bool), Weights({"atkd": 1.0})
    got = per_token(logits, targets, teacher, mask, weights, told)["atkd"]
    wanted = 0.2 * (2 - hard) * dkd + 0.8 * hard * (tkd + dkd)
    torch.testing.assert_close(got, wanted, atol=5e-6, rtol=0)
    torch.testing.assert_close(gradient(got, logits), gradient(wanted, logits), atol=5e-6, rtol=0)


@pytest.mark.parametrize("name", OVER_DISTRIBUTIONS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_gradients_are_those_of_finite_differences(name: str, temperature: float):
    logits, full, _ = case()
    ragged = narrowed(full, [1, 2, 3, 4, 5, 2, 1])
    assert torch.autograd.gradcheck(lambda x: term(name, x, ragged, temperature), (logits,))


@pytest.mark.parametrize("name", OVER_DISTRIBUTIONS)
def test_what_fills_a_narrow_position_changes_nothing(name: str):
    logits, full, _ = case()
    widths = [1, 2, 3, 4, 5, 2, 1]
    ragged = term(name, logits, narrowed(full, widths), 2.0)
    alone = torch.cat(
        [
            term(name, logits[i : i + 1], top(full[i : i + 1], width), 2.0)
            for i, width in enumerate(widths)
        ]
    )
    torch.testing.assert_close(ragged, alone)
    torch.testing.assert_close(gradient(ragged, logits), gradient(alone, logits))


@pytest.mark.parametrize("name", OVER_DISTRIBUTIONS)
def test_a_student_that_is_its_teacher_is_at_the_optimum(name: str):
    _, full, teacher = case()
    logits = full.clone().requires_grad_()
    for temperature in (1.0, 3.0):
        values = term(name, logits, teacher, temperature)
        if name != "soft_ce":
            torch.testing.assert_close(values, torch.zeros_like(values), atol=1e-9, rtol=0)
        if name != "tvd":
            grad = gradient(values, logits)
            torch.testing.assert_close(grad, torch.zeros_like(grad), atol=1e-8, rtol=0)


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_temperature_is_that_of_the_logits_where_all_tokens_are_stored(temperature: float):
    """T²·KL(softmax(z_p/T)‖softmax(z_q/T)), as Hinton et al. 2015."""
    logits, full, teacher = case(k=V)
    p, q = (full / temperature).log_softmax(-1), (logits / temperature).log_softmax(-1)
    wanted = temperature**2 * divergences.forward_kl(p, q)
    got = term("forward_kl", logits, teacher, temperature)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(gradient(got, logits), gradient(wanted, logits))


@pytest.mark.parametrize("name", TEMPERED)
def test_a_temperature_is_that_of_the_coarser_distributions(name: str):
    logits, full, teacher = case()
    p, q = (coarse(x, teacher.ids) ** 0.5 for x in (full.exp(), logits.softmax(-1)))
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    got, wanted = term(name, logits, teacher, 2.0), 4 * DEFINITIONS[name](p, q)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(gradient(got, logits), gradient(wanted, logits))


def test_a_divergence_between_the_two_kls():
    logits, full, _ = case()
    q = logits.log_softmax(-1)
    small = 1e-6
    near_forward = divergences.jsd(full, q, small) / small
    near_reverse = divergences.jsd(full, q, 1 - small) / small
    torch.testing.assert_close(near_forward, divergences.forward_kl(full, q), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(near_reverse, divergences.reverse_kl(full, q), rtol=1e-4, atol=1e-4)
    half = divergences.jsd(full, q, 0.5)
    torch.testing.assert_close(half, divergences.jsd(q, full, 0.5))


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_the_generalised_jsd_is_that_of_trl(beta: float, monkeypatch: pytest.MonkeyPatch):
    """Seen equal with TRL 1.16, which is no dependency and is not imported where it is not."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    gkd = pytest.importorskip("trl.experimental.gkd", exc_type=ImportError).GKDTrainer
    logits, full, _ = case()
    theirs = gkd.generalized_jsd_loss(logits[None], full[None], beta=beta, reduction="none")
    ours = divergences.jsd(full, logits.log_softmax(-1), beta)
    torch.testing.assert_close(ours, theirs[0].sum(-1))
    torch.testing.assert_close(gradient(ours, logits), gradient(theirs, logits))


LOGPROBS = st.sampled_from([0.0, -1e-8, -1e-4, -1.0, -9.0, -30.0, -100.0])
TAILS = st.sampled_from([-torch.inf, -100.0, -16.2, -3.0, 0.0])
LOGITS = st.sampled_from([-80.0, -1.0, 0.0, 80.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(
    st.lists(LOGPROBS, max_size=2),
    TAILS,
    st.lists(LOGITS, min_size=4, max_size=4),
    st.integers(0, 3),
    LOGPROBS,
    st.sampled_from([0.5, 1.0, 7.0]),
    st.booleans(),
)
def test_nothing_is_nan(
    dtype: torch.dtype, stored, tail, values, target: int, known: float, heat: float, kept: bool
):
    """One-hot teachers, empty lists, sure students, no easy or hard tokens, masked rows."""
    logits = torch.tensor([values, values], dtype=dtype, requires_grad=True)
    filled = stored + [-torch.inf] * (2 - len(stored))
    teacher = Sparse(
        torch.tensor([[1, 2]] * 2), torch.tensor([filled] * 2), torch.tensor([tail] * 2)
    )
    group = torch.tensor([2.0, 0.0])
    told = Realised(torch.tensor([known] * 2), group, group.flip(0), torch.ones(2))
    weights = Weights(dict.fromkeys(("ce", *OVER_DISTRIBUTIONS), 1.0), 0.0, BETA, ALPHA, heat)
    mask = torch.tensor([kept, False])
    terms = per_token(logits, torch.tensor([target, target]), teacher, mask, weights, told)
    total = torch.stack(list(terms.values()))
    assert total.isfinite().all()
    assert (total[:, ~mask] == 0).all()
    grad = gradient(total, logits)
    assert grad.isfinite().all()
    assert (grad[~mask] == 0).all()


def test_rows_are_weighed_in_terms_over_distributions_alone():
    logits, full, teacher = case()
    weight = torch.linspace(0, 1, N, dtype=torch.float64)
    told = realised(N)._replace(weight=weight)
    mask = torch.ones(N, dtype=torch.bool)
    weights = Weights({"ce": 1.0, "reverse_kl": 1.0})
    even = per_token(logits, full.argmax(-1), teacher, mask, weights)
    weighed = per_token(logits, full.argmax(-1), teacher, mask, weights, told)
    torch.testing.assert_close(weighed["ce"], even["ce"])
    torch.testing.assert_close(weighed["reverse_kl"], weight * even["reverse_kl"])
