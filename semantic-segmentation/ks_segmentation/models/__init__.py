"""Segmenters: one file or folder each, found by its name; `parts` holds what they share."""
