"""One file or folder of `models/` per segmenter; its name is the `model_type` of transformers. There is no registry to edit."""

from common.plugins import Plugins
from ks_segmentation import models

REFUSAL = "a {name} is no segmenter known here; there are: {known}."
_SEGMENTERS = Plugins(models, "SEGMENTER", REFUSAL, ("parts", "segmenters"))
available, segmenter_type = _SEGMENTERS.available, _SEGMENTERS.load
