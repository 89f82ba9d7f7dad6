"""Attacks on forgetting, one per file: functions of arrays (answers and features), or of a model and a loader."""
