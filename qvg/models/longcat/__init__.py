"""LongCat-Video."""
