"""Examples in every form people have them: readers, rows, ids, noise keyed by example, tokens."""
