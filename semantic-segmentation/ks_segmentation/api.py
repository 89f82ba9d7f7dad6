"""Semantic segmentation from Python: `swap` and `load_run`."""

from common import result
from ks_segmentation.session import SESSION

swap = result.swapper(
    SESSION,
    what="the classes of a segmenter",
    model="""a path that --checkpoint takes (a run folder; a detectron2 file together with `config_file`, whose settings
        `opts=[KEY, value, ...]` change), or a model of `build_mask2former`, `load_checkpoint` or `load_hub`, whose classes are
        named by `class_names=[...]`""",
    pairs="""(image, mask), masks [H, W] of class
        ids with 255 where there is none""",
    scores="mean IoU",
)
load_run = result.loader(SESSION)
load_runs = result.loader_of_several(SESSION)
