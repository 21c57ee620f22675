-- Source and target hold the same addresses, as often.
urls_missing = 0 AND urls_added = 0
