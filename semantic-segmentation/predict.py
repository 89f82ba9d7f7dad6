"""Segment pictures: an overlay and a PNG of class ids for each file or folder of files."""

import argparse
import sys
from pathlib import Path

from common import cli, devices, distributed
from common.config import Parser, add_flags, from_args
from common.errors import UserError


def run(argv: list[str]) -> None:
    """Predictions from flags."""
    from ks_segmentation.session import SourceConfig, base_model, load_run

    parser = Parser(prog="predict.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("images", nargs="+", help="picture files or folders of them")
    parser.add_argument("--run", default="", help="folder of a finished run of swap.py or pretrain.py")
    parser.add_argument(
        "--output-dir", default="predictions", help="where NAME.ids.png and NAME.overlay.png are written"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY value", help="config overrides, last"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_flags(parser, SourceConfig)
    args = parser.parse_args(argv)
    files = find(args.images)
    if args.run:
        model, names, _ = load_run(args.run, args.opts)
    else:
        model, names = base_model(from_args(SourceConfig, args), args.opts, grow=False)
    if model.num_classes > 255:
        raise UserError(f"ids of {model.num_classes} classes do not fit an 8-bit PNG.")
    device = devices.choose_device(args.device, distributed.local_rank())
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    model = model.to(device).eval()
    for file in files:
        print(f"{file}: {segment_file(model, file, names, folder)}")


def find(paths: list[str]) -> list[Path]:
    """The pictures among files and folders. Raises UserError when there is none."""
    from ks_segmentation.layouts import PICTURES, pictures

    files = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"there is no file or folder {path}.")
        found = [path] if path.is_file() else pictures(path)
        if not found:
            raise UserError(f"{path} holds no pictures ({', '.join(PICTURES[:4])}, ...).")
        files += found
    return files


def segment_file(model, file: Path, names: list[str], folder: Path) -> str:
    """Writes the two PNGs of one picture; returns the classes in it, the largest first."""
    import io

    import numpy as np
    import torch
    from ks_segmentation.augment import scoring_view
    from ks_segmentation.masks import read_image
    from ks_segmentation.pictures import painted
    from PIL import Image

    from common.record import write_bytes

    picture = read_image(file)
    view = scoring_view(torch.from_numpy(picture).permute(2, 0, 1), model.config.INPUT)
    with torch.inference_mode():
        image = model.normalise(view[None].to(model.pixel_mean.device))
        ids = model.segment(image, [picture.shape[:2]])[0].cpu().numpy()
    for ending, array in (("ids", ids.astype(np.uint8)), ("overlay", painted(picture, ids))):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG")
        write_bytes(folder / f"{file.stem}.{ending}.png", buffer.getvalue())
    rows, counts = np.unique(ids, return_counts=True)
    order = np.argsort(-counts)
    named = [f"{names[rows[i]] if rows[i] < len(names) else rows[i]} {100 * counts[i] / ids.size:.1f} %" for i in order]
    return ", ".join(named)


if __name__ == "__main__":
    sys.exit(cli.main(run))
