"""What the detectors share: backbones, feature levels, boxes, matching, the loss."""
