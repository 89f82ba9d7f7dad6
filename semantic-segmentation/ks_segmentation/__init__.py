"""Semantic segmentation: Mask2Former that learns, forgets and retains."""
