-- How much probability lies outside what is stored?
--
-- A row is a position (from 0) of all targets of an origin: n targets that reach it, how many ids a
-- position holds on average (k, or fewer where rows are ragged), and mean, median, 95th percentile
-- and maximum of the tail mass. The last row of an origin, position NULL, is of all positions.
CREATE MACRO tail_by_position() AS TABLE
SELECT
    origin, position, count(*) AS n, avg(len(topk_ids)) AS held,
    avg(tail_mass) AS mean, median(tail_mass) AS median,
    quantile_cont(tail_mass, 0.95) AS p95, max(tail_mass) AS max
FROM logits_by_position
GROUP BY GROUPING SETS ((origin, position), (origin))
ORDER BY origin, position NULLS LAST;
