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

# Log-probabilities stand in `topk_logprobs`, or as codes in runs: see `factory.precision`.
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

SIGNALS = pa.schema(
    [
        ("sample_id", ID),
        ("rank", pa.int32()),
        ("error", pa.bool_()),
        ("truncated", pa.bool_()),
        ("empty", pa.bool_()),
        ("copy", pa.bool_()),
        ("duplicate", pa.bool_()),
        ("control_tokens", pa.int64()),
        ("n_words_source", pa.int64()),
        ("n_words_target", pa.int64()),
        ("length_ratio", pa.float64()),
        ("n_tokens", pa.int32()),
        ("mean_logprob", pa.float64()),
    ]
)

VERDICTS = pa.schema(
    [
        ("sample_id", ID),
        ("rank", pa.int32()),
        ("kept", pa.bool_()),
        ("selected", pa.bool_()),
        ("reasons", pa.list_(pa.string())),
    ]
)
