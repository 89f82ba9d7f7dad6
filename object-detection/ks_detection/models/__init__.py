"""Detectors: one folder each, and `parts/` that they share; `detectors.py` lists them."""
