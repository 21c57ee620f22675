-- A row is an input row that could not be used.
CREATE VIEW refused AS
SELECT file, line, reason
FROM raw.refused;
