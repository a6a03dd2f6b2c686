"""QVG: long memory for video models. This folder is a Python package under whatever name its clone has; see qvg/ and kernels/.

The library needs no ComfyUI: `from comfyui_qvg.qvg import ...` after `pip install -e .`. ComfyUI finds its nodes by
`comfy_entrypoint`; a NODE_CLASS_MAPPINGS here, even an empty one, would make it look no further.
"""

if __package__:
    WEB_DIRECTORY = "./web"

    async def comfy_entrypoint():  # type: ignore[no-untyped-def]  # its type is ComfyUI's
        """The extension that ComfyUI asks for its nodes."""
        from .nodes import QVGExtension

        return QVGExtension()
