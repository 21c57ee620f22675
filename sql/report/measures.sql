-- What was measured, at a glance. Quantiles are t-digests: memory does not grow with the run.
WITH measured AS (
    UNPIVOT (
        SELECT COLUMNS(lambda name: list_contains($measures, name))::DOUBLE FROM signals
    ) ON COLUMNS(*) INTO NAME measure VALUE amount
)
SELECT
    measure, count(*) AS candidates, avg(amount) AS mean, min(amount) AS least,
    approx_quantile(amount, 0.05) AS p5, approx_quantile(amount, 0.5) AS median,
    approx_quantile(amount, 0.95) AS p95, max(amount) AS most
FROM measured
WHERE isfinite(amount)
GROUP BY measure
ORDER BY list_position($measures, measure)
