"""DINO (Zhang et al., 2022, arXiv:2203.03605), one concept per file; start at `model.py`."""
