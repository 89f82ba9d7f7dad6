"""Files of DINO weights: read, checked, extended and written back in the published layout."""
