"""What segmenters share: the seam, the loss of queries, inference."""
