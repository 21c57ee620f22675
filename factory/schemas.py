"""The typed columns of every table that a run stores."""

from __future__ import annotations

import pyarrow as pa

ID = pa.string()
INTS = pa.list_(pa.int32())
FLOATS = pa.list_(pa.float32())

SAMPLES = pa.schema(
    [
        ("sample_id", ID),
        ("split", pa.string()),
        ("source", pa.string()),
        ("gold", pa.string()),
        ("gold_visible", pa.bool_()),
        ("prompt", pa.string()),
        ("n_prompt_tokens", pa.int32()),
        ("meta", pa.string()),
        ("prompt_ids", INTS),
        ("prompt_hash", pa.int64()),
        ("row", pa.int64()),
    ]
)

TOKENS = pa.schema([("token_id", pa.int32()), ("token", pa.string()), ("bytes", pa.binary())])

REFUSED = pa.schema([("file", pa.string()), ("line", pa.int64()), ("reason", pa.string())])

CANDIDATES = pa.schema(
    [
        ("sample_id", ID),
        ("prompt_hash", pa.int64()),
        ("rank", pa.int32()),
        ("score", pa.float64()),
        ("text", pa.string()),
        ("token_ids", INTS),
        ("n_tokens", pa.int32()),
        ("sum_logprob", pa.float64()),
        ("mean_logprob", pa.float64()),
        ("finish_reason", pa.string()),
        ("error", pa.string()),
        ("ordinal", pa.int32()),
        ("seed", pa.int64()),
        ("duplicate_of", pa.int32()),
        ("control_tokens", pa.int32()),
        ("reasoning", pa.string()),
        ("reasoning_ids", INTS),
    ]
)

LOGITS = pa.schema(
    [
        ("sample_id", ID),
        ("prompt_hash", pa.int64()),
        ("origin", pa.string()),
        ("rank", pa.int32()),
        ("n_tokens", pa.int32()),
        ("k", pa.int32()),
        ("widths", INTS),
        ("token_ids", INTS),
        ("token_logprobs", FLOATS),
        ("topk_ids", INTS),
        ("topk_logprobs", FLOATS),
        ("tail_logprob", FLOATS),
        ("counts", INTS),
        ("draws", pa.int32()),
    ]
)

# Log-probabilities stand in `topk_logprobs`, or as codes: see `factory.distributions.precision`.
STORED_LOGITS = pa.schema(
    [*LOGITS, ("topk_codes", pa.list_(pa.uint16())), ("topk_runs", pa.list_(pa.uint32()))]
)

TRAIN_LOG = pa.schema(
    [
        ("stage", pa.string()),
        ("step", pa.int64()),
        ("stage_step", pa.int64()),
        ("epoch", pa.int32()),
        ("loss", pa.float64()),
        ("terms", pa.map_(pa.string(), pa.float64())),
        ("lr", pa.float64()),
        ("tokens", pa.int64()),
        ("tokens_per_second", pa.float64()),
        ("seconds", pa.float64()),
        ("grad_norm", pa.float64()),
        ("validation", pa.float64()),
    ]
)

PREDICTIONS = pa.schema(
    [
        ("system", pa.string()),
        ("stage", pa.string()),
        ("split", pa.string()),
        ("sample_id", ID),
        ("text", pa.string()),
        ("token_ids", INTS),
    ]
)

EVALS = pa.schema(
    [
        ("system", pa.string()),
        ("stage", pa.string()),
        ("split", pa.string()),
        ("metric", pa.string()),
        ("fold", pa.int32()),
        ("score", pa.float64()),
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
        ("signature", pa.string()),
    ]
)

# One column for each measurement, by the family that gives it: see `factory.judging.signals`.
MEASURED: dict[str, list[tuple[str, pa.DataType]]] = {
    "text": [
        ("error", pa.bool_()),
        ("truncated", pa.bool_()),
        ("empty", pa.bool_()),
        ("n_words_source", pa.int64()),
        ("n_words_target", pa.int64()),
        ("n_chars_source", pa.int64()),
        ("n_chars_target", pa.int64()),
        ("n_tokens", pa.int32()),
        ("length_ratio", pa.float64()),
        ("char_ratio", pa.float64()),
        ("copy", pa.bool_()),
        ("copy_overlap", pa.float64()),
        ("letter_share", pa.float64()),
        ("letter_word_share", pa.float64()),
        ("number_match", pa.float64()),
        ("numbers_missing", pa.int64()),
        ("numbers_added", pa.int64()),
        ("urls_missing", pa.int64()),
        ("urls_added", pa.int64()),
        ("control_tokens", pa.int64()),
    ],
    "repetition": [
        *((f"top_{n}gram_share", pa.float64()) for n in (2, 3, 4)),
        *((f"duplicate_{n}gram_share", pa.float64()) for n in range(5, 11)),
        ("duplicate_line_share", pa.float64()),
        ("repetition", pa.float64()),
    ],
    "confidence": [
        ("mean_logprob", pa.float64()),
        ("min_logprob", pa.float64()),
        ("entropy", pa.float64()),
    ],
    "duplicates": [("duplicate", pa.bool_())],
    "language": [
        ("language_source", pa.string()),
        ("language_target", pa.string()),
        ("language_confidence", pa.float64()),
    ],
    "similarity": [("chrf_gold", pa.float64()), ("bleu_gold", pa.float64())],
    "agreement": [("agreement", pa.float64())],
    "near": [("near_duplicate", pa.bool_()), ("near_test", pa.bool_())],
    "protected": [("placeholders_missing", pa.int64()), ("glossary_missing", pa.int64())],
    "reverse": [("reverse_logprob", pa.float64())],
}

KEY = [("sample_id", ID), ("rank", pa.int32())]
SIGNALS = pa.schema([*KEY, *(column for family in MEASURED.values() for column in family)])

VERDICTS = pa.schema(
    [
        ("sample_id", ID),
        ("rank", pa.int32()),
        ("kept", pa.bool_()),
        ("selected", pa.bool_()),
        ("reasons", pa.list_(pa.string())),
    ]
)
