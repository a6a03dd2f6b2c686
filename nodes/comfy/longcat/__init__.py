"""LongCat-Video in ComfyUI, which has no such network: ours, made of ComfyUI's own layers."""
