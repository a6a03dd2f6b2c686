"""LongLive 2.0 5B: Wan 2.2 5B made causal, with scene cuts."""
