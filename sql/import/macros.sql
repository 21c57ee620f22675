-- What is wrong with a row: the value that stands there, as text or as a number, and the remedy.
CREATE TEMP MACRO fault(word, number, remedy) AS
    {'word': word::VARCHAR, 'number': number::DOUBLE, 'remedy': remedy::VARCHAR};
CREATE TEMP MACRO unlikely(logprobs) AS
    list_filter(logprobs, lambda p: p IS NULL OR p > 1e-4 OR NOT isfinite(p));
CREATE TEMP MACRO strange(ids, size) AS
    list_filter(ids, lambda i: i IS NULL OR NOT (i >= 0 AND i < size AND i = floor(i)));
