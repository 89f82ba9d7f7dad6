from ks_segmentation.published import main

main("fftl")
