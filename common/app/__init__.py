"""A page to try a run on: base, and the state after each phase, side by side."""
