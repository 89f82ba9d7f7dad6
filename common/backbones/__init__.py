"""Backbones that several domains build on: plain modules, images in, feature maps out."""
