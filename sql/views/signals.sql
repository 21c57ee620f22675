-- A row is a candidate, measured.
CREATE VIEW signals AS
FROM raw.signals;
