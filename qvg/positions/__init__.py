"""Positions of tokens, and what they do to queries and keys: rotary embedding, and projection by cameras."""
