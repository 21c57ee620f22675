-- Candidates by bin of a measure and by verdict. Some thirty bins of a round width between the half
-- per cent at either end; what lies beyond is in the outermost. A bin holds its lower edge, the last
-- one both. Whole numbers are binned by whole numbers.
WITH measured AS (
    UNPIVOT (
        SELECT
            selected, kept, COLUMNS(lambda name: list_contains($measures, name))::DOUBLE
        FROM signals
        JOIN verdicts USING (sample_id, rank)
    ) ON COLUMNS(* EXCLUDE (selected, kept)) INTO NAME measure VALUE amount
),
finite AS (
    FROM measured WHERE isfinite(amount)
),
spans AS (
    SELECT
        measure,
        approx_quantile(amount, 0.005) AS low, approx_quantile(amount, 0.995) AS high,
        bool_and(amount = floor(amount)) AND max(abs(amount)) > 1 AS whole,
        greatest((high - low) / 30, CASE WHEN whole THEN 1 ELSE 1e-6 END) AS rough,
        pow(10, floor(log10(rough) + 1e-9)) AS power,
        power * CASE
            WHEN rough <= power * 1.001 THEN 1 WHEN rough <= 2 * power THEN 2
            WHEN rough <= 5 * power THEN 5 ELSE 10
        END AS width
    FROM finite
    GROUP BY measure
),
edges AS (
    SELECT
        *, floor(low / width + 1e-9) AS first,
        greatest(first, CASE WHEN whole THEN floor(high / width) ELSE ceil(high / width - 1e-9) - 1 END) AS last
    FROM spans
),
binned AS (
    SELECT measure, width, selected, kept,
        least(greatest(floor(amount / width + 1e-9), first), last) AS bin
    FROM finite
    JOIN edges USING (measure)
)
SELECT
    measure, round(bin * width, 9) AS "from", round((bin + 1) * width, 9) AS "to",
    count(*) FILTER (selected) AS selected,
    count(*) FILTER (kept AND NOT selected) AS kept,
    count(*) FILTER (NOT kept) AS rejected
FROM binned
GROUP BY measure, width, bin
ORDER BY measure, bin
