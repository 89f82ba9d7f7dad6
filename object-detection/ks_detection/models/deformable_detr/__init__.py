"""Deformable DETR (Zhu et al., 2021, arXiv:2010.04159) on transformers' modules; start at `model.py`."""
