"""Mask2Former on transformers' modules, with our forward and compiled attention."""
