"""Images with class-id masks: where they come from, how they are read and augmented."""
