-- Entropy in nats of what is stored of a distribution, all that is not as one bucket: a lower bound
-- of the whole distribution's, for splitting the bucket only adds. (A probability of 0 counts 0.)
CREATE MACRO held_entropy(logprobs, tail_mass) AS
    COALESCE(list_sum(list_transform(logprobs, lambda l: -exp(l) * greatest(l, -1000))), 0)
    - tail_mass * ln(greatest(tail_mass, 1e-300));
