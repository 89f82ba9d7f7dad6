"""Drop and H-mean, measures over phases, distance to a retrained model."""
