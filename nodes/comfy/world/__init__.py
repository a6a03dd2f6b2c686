"""Worlds to walk through: HY-WorldPlay on both of its networks."""
