-- Places in the flat lists of `logits` (from 1, for list_select) that belong to a position (from 0).
CREATE MACRO entries_at(k, widths, position) AS range(
    COALESCE(position * k, list_sum(widths[:position])::BIGINT, 0) + 1,
    COALESCE(position * k, list_sum(widths[:position])::BIGINT, 0) + 1
        + COALESCE(k, widths[position + 1])
);
