"""A replica that always dies without a word, each time after one more line in its log."""

import os

print("loading, and gone", flush=True)
os._exit(3)
