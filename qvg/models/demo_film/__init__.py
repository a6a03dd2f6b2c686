"""The demo film: a small film model that is a true causal Wan, its films, and its pictures' encoder and decoder."""
