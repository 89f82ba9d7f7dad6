"""Scores per group, attacks on forgetting, distance to a retrained model."""
