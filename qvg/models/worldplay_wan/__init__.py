"""HY-WorldPlay on Wan 2.2 5B."""
