"""Labelled images: where they come from, which are used, how they are read."""
