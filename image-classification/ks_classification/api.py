"""Image classification from Python: `swap` and `load_run`."""

from common import result
from ks_classification.session import SESSION

swap = result.swapper(
    SESSION,
    what="image classes",
    model="""a path that --checkpoint takes (a run folder, a published file), or a classifier with a linear head whose rows
        are named by `class_names=[...]`; its input size and pixel statistics are timm's own, or `img_size` and `normalize`""",
    pairs="(image, label)",
    scores="accuracy",
)
load_run = result.loader(SESSION)
load_runs = result.loader_of_several(SESSION)
