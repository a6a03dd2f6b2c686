"""`qvg demo`: a walk through the demo world, with three kinds of memory."""
