"""Object detection from Python: `swap` and `load_run`."""

from common import result
from ks_detection.session import SESSION

swap = result.swapper(
    SESSION,
    what="object classes",
    model="""a path that --checkpoint takes (a run folder, an official .pth, a Hugging Face folder), or a detector of
        `build_detector` or `load_checkpoint` whose rows are named by its `class_table` or by `class_names=[...]`""",
    pairs="""(image, {"boxes": [N, 4], "labels": [N]}),
        boxes as left, top, right, bottom in pixels""",
    scores="COCO AP",
)
load_run = result.loader(SESSION)
load_runs = result.loader_of_several(SESSION)
