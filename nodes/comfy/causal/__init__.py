"""Causal Wan: its files, and its network in ComfyUI, under core's sampler and ours."""
