from ks_classification.published import main

main("fftl")
