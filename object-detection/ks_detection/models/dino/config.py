"""Every constant of a DINO, under its published name, with the published default."""

from dataclasses import dataclass, field

from common.errors import UserError
from ks_detection.models.parts.config import PyramidConfig

# What the published code can also do and this one does not: a config that asks for it is refused.
FIXED = {
    "two_stage_type": "standard",
    "embed_init_tgt": True,
    "decoder_sa_type": "sa",
    "decoder_module_seq": ["sa", "ca", "ffn"],
    "dec_pred_bbox_embed_share": True,
    "dec_pred_class_embed_share": True,
    "two_stage_bbox_embed_share": False,
    "two_stage_class_embed_share": False,
    "two_stage_add_query_num": 0,
    "two_stage_keep_all_tokens": False,
    "two_stage_learn_wh": False,
    "pre_norm": False,
    "query_dim": 4,
    "num_patterns": 0,
    "transformer_activation": "relu",
    "position_embedding": "sine",
    "batch_norm_type": "FrozenBatchNorm2d",
    "masks": False,
    "dilation": False,
    "random_refpoints_xy": False,
    "add_channel_attention": False,
    "add_pos_value": False,
    "use_detached_boxes_dec_out": False,
    "decoder_layer_noise": False,
    "matcher_type": "HungarianMatcher",
    "no_interm_box_loss": False,
    "aux_loss": True,
}


@dataclass
class DinoConfig(PyramidConfig):
    """A DINO detector; names and defaults are those of the published 4-scale ResNet-50 config."""

    modelname, fixed = "dino", FIXED

    dn_labelbook_size: int = field(default=0, metadata={"help": "label_enc has one row more; 0: num_classes"})
    dim_feedforward: int = 2048
    pe_temperatureH: float = 20.0
    pe_temperatureW: float = 20.0
    num_queries: int = 900
    num_select: int = 300
    use_dn: bool = True
    dn_number: int = 100
    dn_label_noise_ratio: float = 0.5
    dn_box_noise_scale: float = 0.4  # every published command line overrides it with 1.0
    cls_loss_coef: float = 1.0
    interm_loss_coef: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.dn_labelbook_size = self.dn_labelbook_size or self.num_classes
        if self.hidden_dim % self.nheads or self.hidden_dim % 4:
            raise UserError(f"`hidden_dim` must divide by `nheads` ({self.nheads}) and by 4, got {self.hidden_dim}.")
        if self.dn_labelbook_size < self.num_classes:
            raise UserError(
                f"`dn_labelbook_size` must be at least `num_classes` ({self.num_classes}), "
                f"got {self.dn_labelbook_size}."
            )
