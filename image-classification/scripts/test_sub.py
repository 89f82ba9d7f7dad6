from ks_classification.blocks import main

main("test_sub")
