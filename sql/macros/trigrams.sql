-- The distinct runs of three characters of a text, two blanks before it and one after, as PostgreSQL's
-- pg_trgm takes them of a word.
CREATE MACRO trigrams(written) AS list_distinct(list_transform(
    list_transform(
        [string_split('  ' || written || ' ', '')],
        lambda c: list_zip(c, c[2:], c[3:])[: len(c) - 2]
    )[1],
    lambda z: z[1] || z[2] || z[3]
));
