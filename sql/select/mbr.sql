-- Minimum Bayes risk (arXiv 2309.10966): the candidate that agrees most, by chrF, with all others of
-- its source, whether they are kept or not. Of a lone candidate, that one.
agreement DESC
