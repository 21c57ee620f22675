-- Candidates judged, and of those that both runs hold, whose verdict stayed and whose changed.
SELECT
    (SELECT count(*) FROM verdicts) AS "first",
    (SELECT count(*) FROM other.verdicts) AS "second",
    count(*) AS "both",
    count(*) FILTER (first_kept AND second_kept) AS kept,
    count(*) FILTER (NOT first_kept AND NOT second_kept) AS rejected,
    count(*) FILTER (first_kept AND NOT second_kept) AS newly_rejected,
    count(*) FILTER (NOT first_kept AND second_kept) AS newly_kept
FROM judged
