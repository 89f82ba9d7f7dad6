from ks_classification.blocks import main

main("run_cl_forget_image")
