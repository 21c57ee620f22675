-- How alike two texts are, from 0 to 1: the share that their runs of three characters have in common
-- of all of both (Jaccard's, as pg_trgm's similarity). It asks for no words, and its cost grows with
-- the texts' length and no faster.
CREATE MACRO alike(a, b) AS list_transform(
    [{'a': trigrams(a), 'b': trigrams(b)}],
    lambda t: list_transform(
        [len(list_intersect(t.a, t.b))], lambda n: n / (len(t.a) + len(t.b) - n)
    )[1]
)[1];
