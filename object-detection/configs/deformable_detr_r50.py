"""The published Deformable DETR R50 on COCO, also of the CL-DETR experiments; to be trained from scratch."""

modelname = "deformable_detr"
backbone = "resnet50"
num_classes = 91
