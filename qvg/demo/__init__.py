"""`qvg demo`: a walk through the demo world, or a film, with three kinds of memory."""
