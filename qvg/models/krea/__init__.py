"""Krea Realtime: causal Wan 2.1 at 14B."""
