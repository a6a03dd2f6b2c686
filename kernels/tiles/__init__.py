"""Pieces of Triton kernels that several ops share: how a tile of the memory format is read and written."""
