"""Find objects in pictures: image files or folders of them, as JSON and as pictures with boxes drawn in."""

import json
import sys
from pathlib import Path

from common import cli, devices, distributed, precision
from common.config import Parser
from common.errors import UserError
from common.files import find_files


def run(argv: list[str]) -> None:
    """Detections from flags."""
    parser = Parser(prog="predict.py", description=__doc__)
    parser.add_argument("model", help="folder of a finished run or of pretrain.py, or a checkpoint file")
    parser.add_argument("images", nargs="+", help="image files or folders of them")
    parser.add_argument("--threshold", type=float, default=0.3, help="smallest score shown, 0..1")
    parser.add_argument(
        "--test-size", type=int, default=0, help="shorter side in pixels; default the run's own, or 800"
    )
    parser.add_argument("--longest", type=int, default=1333, help="longest side allowed, pixels")
    parser.add_argument("--output-dir", default="", help="also write each picture with its boxes into this folder")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--class-names", default="", help="names of the rows of a checkpoint that has none")
    args = parser.parse_args(argv)
    if not 0 <= args.threshold <= 1:
        raise UserError(f"`--threshold` must be in 0..1, got {args.threshold}.")
    model, size = load_model(args.model, args.class_names)
    answers = predict(model, find(args.images), args.test_size or size, args)
    print(json.dumps(answers, indent=1))


def load_model(path: str, class_names: str):
    """(detector with a class table, shorter side in pixels that it was scored at)."""
    from ks_detection.session import SourceConfig, base_model, is_run, load_run

    if is_run(path):
        model, record = load_run(path)
        return model, record["flags"].get("test_size", 800)
    return base_model(SourceConfig(checkpoint=path, class_names=class_names)), 800


def find(paths: list[str]) -> list[Path]:
    """The image files among files and folders. Raises UserError when there is none."""
    from ks_detection.data.yolo import SUFFIXES

    return find_files(paths, SUFFIXES, f"images ({', '.join(SUFFIXES)})")


def predict(model, files: list[Path], size: int, args) -> list[dict]:
    """[{"file", "objects": [{"class", "score", "box": [left, top, right, bottom]}, ...]}, ...], best first."""
    import torch
    from ks_detection import gallery
    from ks_detection.data.records import Picture
    from ks_detection.dino.postprocess import post_process
    from ks_detection.transforms import normalise
    from torchvision.transforms import v2
    from torchvision.transforms.v2.functional import pil_to_tensor

    from common.record import write_bytes

    device = devices.choose_device(args.device, distributed.local_rank())
    resize = v2.RandomShortestSize([size], args.longest, antialias=True)
    names, answers = model.class_table.names, []
    model = model.to(device).eval()
    for file in files:
        image = Picture(file.name, file, 0, 0).open()
        pixels = normalise(resize(pil_to_tensor(image))).to(device)
        with torch.inference_mode(), precision.autocast(precision.choose("auto", device), device):
            outputs = model([pixels])
        found = post_process(outputs, [(image.height, image.width)], model.config.num_select, args.threshold)[0]
        rows = zip(*(found[key].tolist() for key in ("labels", "scores", "boxes")), strict=True)
        objects = [
            {"class": names[row], "score": round(score, 4), "box": [round(v, 1) for v in box]}
            for row, score, box in rows
        ]
        answers.append({"file": str(file), "objects": objects})
        if args.output_dir:
            write_bytes(Path(args.output_dir) / f"{file.stem}.png", gallery.png(gallery.draw(image, found, names)))
    return answers


if __name__ == "__main__":
    sys.exit(cli.main(run))
