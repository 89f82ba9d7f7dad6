"""The published script: forget, then learn."""

from ks_detection.published import main

main("fftl")
