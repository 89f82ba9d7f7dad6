"""Face verification: are two pictures of the same person? And closed-set accuracy with and without the margin."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import UserError
from common.weights import read_pickle

THRESHOLDS = np.arange(0, 4, 0.01)  # squared distances of unit vectors lie in 0..4


@dataclass(frozen=True)
class Verification:
    """What a verification test shows; accuracies and rates in percent.

    accuracy, deviation: mean and standard deviation over the folds, each at the others' best threshold.
    threshold: mean of those thresholds, a squared distance.
    tar:       false accept rate (0..1) -> true accept rate at it.
    auc:       area under the ROC curve.
    """

    accuracy: float
    deviation: float
    threshold: float
    tar: dict[float, float]
    auc: float


@torch.no_grad()
def embed(model: nn.Module, images: Tensor, flip: bool = True, batch_size: int = 64) -> Tensor:
    """[N, D] unit embeddings of [N, 3, S, S] images in 0..1, in eval mode.

    flip: add the embedding of the mirrored image before normalising, as published.
    """
    training = model.training
    model.eval()
    found = []
    for batch in images.split(batch_size):
        z = model(batch)
        found.append(z + model(batch.flip(-1)) if flip else z)
    model.train(training)
    return nn.functional.normalize(torch.cat(found))


def distances(embeddings: Tensor, pairs: np.ndarray) -> np.ndarray:
    """[P] squared Euclidean distances of the pairs [P, 2] of rows of `embeddings`."""
    first, second = (embeddings[torch.as_tensor(pairs[:, side])] for side in (0, 1))
    return (first - second).square().sum(1).double().cpu().numpy()


def make_pairs(labels: Iterable[int], count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(pairs [2 count, 2], same [2 count]): `count` pairs of one identity and `count` of two, none twice.

    They alternate, so that consecutive folds hold as many of each.

    Raises:
        UserError: the labels do not allow that many different pairs.
    """
    labels = np.asarray(list(labels))
    rng = np.random.default_rng(seed)
    first, second = np.triu_indices(len(labels), k=1)
    equal = labels[first] == labels[second]
    chosen = []
    for kind in (equal, ~equal):
        candidates = np.flatnonzero(kind)
        if len(candidates) < count:
            raise UserError(
                f"`count` {count} is more than the {len(candidates)} pairs that {len(labels)} images allow."
            )
        chosen.append(rng.choice(candidates, count, replace=False))
    order = np.stack(chosen, axis=1).ravel()
    return np.stack([first[order], second[order]], axis=1), equal[order]


def verify(
    distance: np.ndarray,
    same: np.ndarray,
    folds: int = 10,
    far: Iterable[float] = (1e-1, 1e-2, 1e-3),
    thresholds: np.ndarray = THRESHOLDS,
) -> Verification:
    """Verification accuracy of distances [P] against the truth [P].

    A pair counts as the same person below the threshold. The threshold of a fold is the best of the other
    folds; folds are consecutive, as in the LFW protocol (Huang et al., 2007, view 2).

    Raises:
        UserError: fewer pairs than folds, or only one kind of pair.
    """
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import KFold

    distance, same = np.asarray(distance, dtype=float), np.asarray(same, dtype=bool)
    if distance.shape != same.shape or len(same) < folds:
        raise UserError(f"verification needs at least {folds} pairs with an answer each, got {len(same)}.")
    if same.all() or not same.any():
        raise UserError("verification needs pairs of one identity and pairs of two.")
    right = (distance[None] < thresholds[:, None]) == same[None]  # [T, P]
    scores, best = [], []
    for train, test in KFold(folds).split(distance):
        k = int(right[:, train].sum(1).argmax())
        scores.append(100 * right[k, test].mean())
        best.append(thresholds[k])
    return Verification(
        float(np.mean(scores)),
        float(np.std(scores)),
        float(np.mean(best)),
        tar_at_far(distance, same, far),
        float(100 * roc_auc_score(same, -distance)),
    )


def tar_at_far(distance: np.ndarray, same: np.ndarray, far: Iterable[float]) -> dict[float, float]:
    """False accept rate -> largest true accept rate (percent) of any threshold whose rate is not above it."""
    from sklearn.metrics import roc_curve

    accepted_wrongly, accepted_rightly, _ = roc_curve(same, -np.asarray(distance), drop_intermediate=False)
    return {rate: float(100 * accepted_rightly[accepted_wrongly <= rate].max()) for rate in far}


@torch.no_grad()
def closed_set_accuracy(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], margin: bool = False
) -> dict[int | str, float]:
    """{"total": top-1 accuracy in percent, label: accuracy of that class, ...} of a model with a head.

    margin: subtract the margin from the true class's logit before the arg-max. The published accuracies of
        the Face Transformer are such margin accuracies; they are never above the real ones.
    """
    training = model.training
    model.eval()
    right, truth = [], []
    for images, labels in batches:
        embedding = model(images)
        logits = model.head(embedding, labels) if margin else model.head(embedding)
        right.append(logits.argmax(1) == labels)
        truth.append(labels)
    model.train(training)
    if not truth:
        raise UserError("there are no images to measure the accuracy on.")
    hit, label = torch.cat(right).double(), torch.cat(truth)
    result: dict[int | str, float] = {"total": 100 * hit.mean().item()}
    for c in label.unique().tolist():
        result[c] = 100 * hit[label == c].mean().item()
    return result


def read_bin(path: str | Path) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """(images [2P, 3, H, W] in 0..1, pairs [P, 2], same [P]) of a verification file such as lfw.bin.

    The file pickles (encoded images, answers). Only bytes, numbers, lists and numpy arrays are admitted.

    Raises:
        UserError: no such file, damaged, or holds anything else.
    """
    from PIL import Image

    try:
        encoded, same = read_pickle(path, encoding="bytes")
        pictures = [np.asarray(Image.open(io.BytesIO(bytes(item))).convert("RGB")) for item in encoded]
        images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    except (OSError, TypeError, ValueError) as error:  # UserError is a ValueError and says more
        raise (
            error if isinstance(error, UserError) else UserError(f"{path} is no verification file: {error}.")
        ) from None
    same = np.asarray(same, dtype=bool)
    if len(images) != 2 * len(same):
        raise UserError(f"{path} has {len(images)} images for {len(same)} answers, expected two per answer.")
    return images, np.arange(len(images)).reshape(-1, 2), same
