"""DETR's descendants in the transformers library, by `--model hf:FOLDER_OR_NAME`; start at `model.py`."""
