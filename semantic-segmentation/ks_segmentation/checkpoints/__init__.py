"""Weights: files of others, in and out, and folders of ours."""
