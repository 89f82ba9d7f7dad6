from ks_classification.blocks import main

main("run_sub")
