"""Knows nothing about images, boxes or masks: plans, the loop, methods, LoRA, records and reports."""
