"""`qvg doctor`: what of a ComfyUI this pack touches, and what of that a ComfyUI lacks. Only read, nothing is imported or run."""
