"""Data sets: sources, the prepared folder with its card and shards, and the batches read from it."""
