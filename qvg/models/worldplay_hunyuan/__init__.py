"""HY-WorldPlay on HunyuanVideo 1.5, 8B."""
