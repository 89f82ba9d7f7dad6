"""detectron2's settings: YAML files, `KEY value` words, and what they hold when nothing is said."""
