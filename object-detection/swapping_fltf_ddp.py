"""The published script: learn, then forget."""

from ks_detection.published import main

main("fltf")
