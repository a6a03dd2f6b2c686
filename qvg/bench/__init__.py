"""Measurements that people can repeat: `qvg bench codecs`, `study` and `ablations`, `qvg check-gpu`."""
