"""The demo world as a model of ComfyUI's."""
