"""Evaluate runs: retrieval, re-ranking, hash codes, zero-shot classification and captions."""
