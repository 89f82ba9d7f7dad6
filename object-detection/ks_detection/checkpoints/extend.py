"""New classes for a detector: rows are added in all places that know classes, together."""

import re

import torch
from torch import nn

from common.errors import UserError
from ks_detection.dino.model import PRIOR_BIAS

HEAD = re.compile(r"(^|\.)(enc_out_)?class_embed(\.\d+)?$")


def class_heads(model: nn.Module) -> list[str]:
    """Names of the linear layers with a row per class."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and HEAD.search(name)]


@torch.no_grad()
def extend_classes(model: nn.Module, num_classes: int) -> nn.Module:
    """The same model with `num_classes` logit rows, changed in place; old rows keep their values.

    New class rows start small at the prior of 0.01; new rows of DINO's `label_enc` start like the model's own. Its
    last row, one beyond the classes, stays last.

    Raises:
        UserError: if the model has more classes already.
    """
    config = model.config
    old, added = config.num_classes, num_classes - config.num_classes
    if added < 0:
        raise UserError(f"the model has {old} classes already; it cannot be cut to {num_classes}.")
    if added == 0:
        return model
    for name in sorted(class_heads(model)):  # the order in which random numbers are drawn
        parent, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        setattr(parent, leaf, _longer_head(getattr(parent, leaf), added))
    config.num_classes = num_classes
    if not hasattr(model, "label_enc"):
        return model
    labels, width = model.label_enc.weight, model.label_enc.embedding_dim
    fresh = labels.new_empty(added, width).normal_()
    extended = nn.Embedding(labels.shape[0] + added, width, device=labels.device, dtype=labels.dtype)
    extended.weight.copy_(torch.cat([labels[:old], fresh, labels[old:]]))
    extended.weight.requires_grad_(labels.requires_grad)
    model.label_enc = extended
    config.dn_labelbook_size += added
    return model


def _longer_head(head: nn.Linear, added: int) -> nn.Linear:
    new = nn.Linear(head.in_features, head.out_features + added, device=head.weight.device, dtype=head.weight.dtype)
    new.weight[: head.out_features] = head.weight
    new.bias[: head.out_features] = head.bias
    new.bias[head.out_features :] = PRIOR_BIAS
    new.requires_grad_(head.weight.requires_grad)
    return new
