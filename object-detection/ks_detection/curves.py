"""Precision-recall curves as a picture."""

from __future__ import annotations

import io
from pathlib import Path

from common.errors import UserError
from common.record import write_bytes


def draw_curves(groups: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Writes one panel per group, one line per class: precision over recall at IoU 0.5.

    Args:
        groups: group -> class -> precision (0..1) at recall 0, 0.01, .. 1.
        path: a .png or .svg file.

    Raises:
        UserError: another suffix.
    """
    if path.suffix not in (".png", ".svg"):
        raise UserError(f"--curves {path}: the file must end in .png or .svg.")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(groups), figsize=(4 * len(groups), 3.6), squeeze=False, sharey=True)
    for panel, (group, classes) in zip(panels[0], groups.items(), strict=True):
        for name, precision in classes.items():
            panel.plot([i / 100 for i in range(101)], precision, label=f"{name} {100 * sum(precision) / 101:.0f}")
        panel.set(title=group, xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
        if len(classes) <= 12:
            panel.legend(fontsize=7, title="class, AP50", title_fontsize=7)
    panels[0][0].set_ylabel("precision at IoU 0.5")
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], dpi=120)
    pyplot.close(figure)
    write_bytes(path, buffer.getvalue())
