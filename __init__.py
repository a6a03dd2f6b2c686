"""QVG: long memory for video models. This folder is a Python package under whatever name its clone has; see qvg/ and kernels/.

The library needs no ComfyUI: `from comfyui_qvg.qvg import ...` after `pip install -e .`.
"""
