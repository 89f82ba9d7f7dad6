"""Data sets of boxes: COCO, Pascal VOC and YOLO folders, read into one form and checked."""
