"""Object detection: DINO that learns, forgets and retains."""
