"""Class membership from answers about the classes that are kept (CMIA): does the model answer like one that never saw it?"""

from __future__ import annotations

import numpy as np
from scipy.special import softmax
from sklearn.svm import SVC

COST = 3.0  # SalUn's attacker: SVC(C=3, gamma="auto", kernel="rbf")


def total_variation(logits: np.ndarray, reference: np.ndarray) -> float:
    """Half the L1 distance of two mean answers about the same items: 0 alike .. 1 disjoint.

    Args:
        logits, reference: [N, C] over the classes that both models keep, of items of one forgotten class.

    Source: the plain form of the attack of "Unlearning Isn't Forgetting", arXiv:2506.20893.
    """
    mean, other = (softmax(z, axis=1).mean(0) for z in (logits, reference))
    return float(0.5 * np.abs(mean - other).sum())


def saw(seen: np.ndarray, never: np.ndarray, test: np.ndarray, most: int = 200, seed: int = 0) -> np.ndarray:
    """[1, N] whether a support vector machine takes each answer about a forgotten class for one of a model that saw it.

    Trained on answers over the retained classes about training items of the forgotten class: `seen` [K, C] by the
    original, `never` [M, C] by references; `test` [N, C] are answers about its test items. Mean 0..1; high: answers
    like those of the original; compare with a reference, judged by a machine that has not learned from it.
    Constants: RBF kernel, C = 3, gamma = 1 / C, softmax vectors, classes balanced, at most `most` items of each.

    Source: after MIA-NN, arXiv:2506.20893; kernel and cost are SalUn's.
    """
    random = np.random.default_rng(seed)
    parts = [softmax(z[random.permutation(len(z))[:most]], axis=1) for z in (seen, never)]
    labels = np.repeat([1, 0], [len(part) for part in parts])
    machine = SVC(C=COST, gamma="auto", kernel="rbf", class_weight="balanced")
    machine.fit(np.concatenate(parts), labels)
    return machine.predict(softmax(test, axis=1))[None].astype(float)
