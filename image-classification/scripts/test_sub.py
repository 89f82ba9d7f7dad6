from ks_classification.gs_lora_scripts import main

main("test_sub")
