-- What became of the targets: the same text, another one, or one of one run alone. Of those that changed:
-- how many are candidates of the first run too, chosen otherwise; and how alike they are to it.
SELECT
    count(*) FILTER (first_target = second_target) AS same,
    count(alike) AS changed,
    count(alike) FILTER (EXISTS (
        FROM candidates c WHERE c.sample_id = pairs.sample_id AND c.text = second_target
    )) AS chosen_otherwise,
    count(*) FILTER (second_target IS NULL) AS only_first,
    count(*) FILTER (first_target IS NULL) AS only_second,
    (SELECT count(*) FROM common ANTI JOIN pairs USING (sample_id)) AS neither,
    avg(alike) AS alike_mean,
    quantile_cont(alike, 0.05) AS alike_p5,
    median(alike) AS alike_median
FROM pairs
