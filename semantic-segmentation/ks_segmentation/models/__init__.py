"""Mask2Former: its parts, its loss and its inference."""
