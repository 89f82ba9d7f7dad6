"""Image classification: vision transformers that learn, forget and retain."""
