-- A row is a candidate, judged. reasons names the rules it failed, in manifest order; empty if kept.
CREATE VIEW verdicts AS
SELECT sample_id, rank, kept, selected, reasons
FROM raw.verdicts;
