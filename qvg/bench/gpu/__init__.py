"""What a GPU makes of the pack: `qvg check-gpu`, and what `benchmarks/` shares with it."""
