"""All that touches ComfyUI's internals: models, patching, memory, sampling, previews. Nothing else in this pack does."""
