"""DreamX-World 5B, autoregressive: Wan 2.2 5B and a small attention that knows the cameras."""
