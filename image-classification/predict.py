"""Name what is on pictures: the top five classes of image files or of a folder, as a table or JSON."""

import json
import sys
from pathlib import Path

from common import cli, distributed, precision
from common.config import Parser
from common.errors import UserError


def run(argv: list[str]) -> None:
    """Predictions from flags."""
    parser = Parser(prog="predict.py", description=__doc__)
    parser.add_argument("model", help="folder of a finished run, or of pretrain.py")
    parser.add_argument("images", nargs="+", help="image files or folders of them")
    parser.add_argument("--top", type=int, default=5, help="how many classes to name")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--skip-corrupt", action="store_true", help="leave unreadable files out instead of stopping")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(argv)
    answers = predict(args.model, find(args.images), args.top, args.batch_size, args.device, args.skip_corrupt)
    if args.json:
        print(json.dumps(answers, indent=1))
        return
    width = max(len(a["file"]) for a in answers)
    for answer in answers:
        named = "  ".join(f"{t['class']} {100 * t['probability']:.1f} %" for t in answer["top"])
        print(f"{answer['file']:<{width}}  {named}")


def find(paths: list[str]) -> list[Path]:
    """The image files among files and folders. Raises UserError when there is none."""
    from ks_classification.data import SUFFIXES

    files = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"there is no file or folder {path}.")
        found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not found:
            raise UserError(f"{path} holds no images ({', '.join(SUFFIXES[:4])}, ...).")
        files += found
    return files


def predict(
    folder: str, files: list[Path], top: int, batch_size: int, device_name: str, skip_corrupt: bool
) -> list[dict]:
    """[{"file", "top": [{"class", "probability"}, ...]}, ...], most probable first."""
    import torch
    from ks_classification.data import Item, decode
    from ks_classification.session import load_run
    from ks_classification.transforms import test_transform
    from torchvision.transforms.v2.functional import pil_to_tensor

    model, spec, _ = load_run(folder)
    if not 1 <= top <= len(spec.classes):
        raise UserError(f"`--top` must be between 1 and {len(spec.classes)}, got {top}.")
    device = precision.choose_device(device_name, distributed.local_rank())
    resize = test_transform(spec.size)
    items = [Item(str(f), "", str(f)) for f in files]
    good, tensors, _ = decode(items, lambda image: resize(pil_to_tensor(image)), skip_corrupt, "reading images")
    mean, std = (torch.tensor(v).view(3, 1, 1) * 255 for v in (spec.mean, spec.std))
    answers = []
    model = model.to(device)
    with torch.inference_mode(), precision.autocast(precision.choose("auto", device), device):
        for start in range(0, len(tensors), batch_size):
            images = (torch.stack(tensors[start : start + batch_size]).float() - mean) / std
            values, rows = model(images.to(device)).float().softmax(-1).topk(top)
            for i, (shares, names) in enumerate(zip(values.tolist(), rows.tolist(), strict=True), start):
                best = [{"class": spec.classes[r], "probability": p} for r, p in zip(names, shares, strict=True)]
                answers.append({"file": items[good[i]].name, "top": best})
    return answers


if __name__ == "__main__":
    sys.exit(cli.main(run))
