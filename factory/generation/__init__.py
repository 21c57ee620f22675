"""The teacher at work: a plan, a queue, requests in flight, hypotheses into shards."""
