"""What several families share: weight files, decoders, and the memory of worlds."""
