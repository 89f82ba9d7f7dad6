"""The one opener of pictures: every kind of file becomes upright 8-bit RGB, or one line says why not."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from common import images
from common.errors import UserError
from common.images import ImageError, open_ids, open_image, probe, size_of

EIGHT = np.random.default_rng(0).integers(0, 256, (6, 9), np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 9, 3), np.uint8)
ORIENTATION = 0x0112
BACK = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> the transposition that undoes its turn


def saved(path, image, **more):
    image.save(path, **more)
    return path


def turned(path, image, orientation, **more):
    """The picture stored turned, with the tag that says how to turn it back."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return saved(path, image.transpose(Image.Transpose(BACK[orientation])), exif=exif, **more)


def pixels(source):
    return np.asarray(open_image(source))


GREY = np.repeat(EIGHT[..., None], 3, 2)
WIDE = {
    "16 bit": lambda: Image.fromarray(EIGHT.astype(np.uint16) * 257),
    "32 bit": lambda: Image.fromarray(EIGHT.astype(np.int32)),
    "32 bit, full": lambda: Image.fromarray(EIGHT.astype(np.int32) * 257),
    "float 0..1": lambda: Image.fromarray(EIGHT.astype(np.float32) / 255),
    "float 0..255": lambda: Image.fromarray(EIGHT.astype(np.float32)),
    "float 0..65535": lambda: Image.fromarray(EIGHT.astype(np.float32) * 257),
}


@pytest.mark.parametrize("kind", WIDE)
def test_a_copy_of_more_bits_shows_the_same_picture(tmp_path, kind):
    path = saved(tmp_path / "a.tiff", WIDE[kind]())
    np.testing.assert_array_equal(pixels(path), GREY)


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, ending):
    wide = saved(tmp_path / f"a.{ending}", Image.fromarray(np.array([[0, 1000, 30000, 65535]], np.uint16)))
    assert pixels(wide)[0, :, 0].tolist() == [0, 3, 117, 255]


@pytest.mark.parametrize("orientation", BACK)
@pytest.mark.parametrize("ending", ["png", "webp", "tiff"])
def test_a_turned_picture_is_opened_upright(tmp_path, ending, orientation):
    more = {"lossless": True} if ending == "webp" else {}
    path = turned(tmp_path / f"a.{ending}", Image.fromarray(COLOUR), orientation, **more)
    np.testing.assert_array_equal(pixels(path), COLOUR)
    assert size_of(path) == probe(path) == (9, 6)


def test_other_modes_become_rgb(tmp_path):
    image = Image.fromarray(COLOUR)
    for mode in ("RGBA", "CMYK", "RGBX"):
        path = saved(tmp_path / "a.tiff", image.convert(mode))
        np.testing.assert_array_equal(pixels(path), COLOUR)
    for mode in ("L", "LA"):
        path = saved(tmp_path / "a.png", Image.fromarray(EIGHT).convert(mode))
        np.testing.assert_array_equal(pixels(path), GREY)
    flat = Image.new("P", (2, 2), 1)
    flat.putpalette([0, 0, 0, 9, 8, 7])
    path = saved(tmp_path / "p.png", flat, transparency=b"\xff\x00")
    assert pixels(path)[0, 0].tolist() == [9, 8, 7]
    path = saved(tmp_path / "b.png", Image.fromarray(EIGHT > 99))
    np.testing.assert_array_equal(pixels(path), np.where(GREY > 99, 255, 0))


def test_alpha_is_dropped(tmp_path):
    path = saved(tmp_path / "a.png", Image.new("RGBA", (2, 2), (1, 2, 3, 0)))
    assert pixels(path)[0, 0].tolist() == [1, 2, 3]


def test_what_is_in_memory_is_a_picture_like_a_file():
    buffer = io.BytesIO()
    Image.fromarray(COLOUR).save(buffer, "PNG")
    tensor = torch.from_numpy(COLOUR).permute(2, 0, 1)
    for source in (buffer.getvalue(), COLOUR, Image.fromarray(COLOUR), tensor, tensor / 255, tensor.bfloat16()):
        np.testing.assert_array_equal(pixels(source), COLOUR)
    np.testing.assert_array_equal(pixels(torch.from_numpy(EIGHT)[None] / 255), GREY)


@pytest.mark.parametrize(
    "source, reason",
    [
        (np.full((3, 3), np.nan, np.float32), "values from nan"),
        (np.full((3, 3), -1.0, np.float32), "values from -1"),
        (np.full((3, 3), 70000, np.int32), "values from 70000"),
        (np.zeros((3, 3, 7), np.uint8), "channels"),
        (np.zeros((0, 3), np.uint8), "empty"),
        (np.zeros((1, 101), np.uint8), "100 times"),
        (np.zeros((1, 40000), np.uint8), "32767 a side"),
        ("a.png", "this is a str"),
        (b"no image", "no image"),
    ],
)
def test_what_is_no_picture_is_one_line(source, reason):
    with pytest.raises(ImageError, match=reason) as caught:
        open_image(source, "x")
    assert "\n" not in str(caught.value) and "image x cannot be read" in str(caught.value)


def test_what_is_too_large_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = saved(tmp_path / "bomb.png", Image.new("1", (30000, 30000)))
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    for read in (open_image, size_of, probe):
        with pytest.raises(ImageError, match="180 megapixels"):
            read(path)


@pytest.mark.parametrize("ending", ["jpg", "png", "tiff", "bmp"])
def test_a_file_that_was_cut_short_is_found_without_training_on_it(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = saved(tmp_path / f"a.{ending}", Image.fromarray(noise))
    assert probe(path) == (64, 64)
    path.write_bytes(path.read_bytes()[:-3000])
    for read in (open_image, probe):
        with pytest.raises(ImageError, match=f"a.{ending} cannot be read"):
            read(path)


def test_a_huge_photograph_is_decoded_at_the_size_that_is_enough(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.new("RGB", (5600, 4000)))
    assert open_image(path, least=280).size == (700, 500)
    assert open_image(path).size == (5600, 4000)
    assert images.DRAFT < 4000 * 5600


def test_masks_keep_their_ids(tmp_path):
    ids = EIGHT // 32
    path = saved(tmp_path / "m.png", Image.fromarray(ids))
    np.testing.assert_array_equal(open_ids(path, np.asarray), ids)
    np.testing.assert_array_equal(open_ids(turned(tmp_path / "t.png", Image.fromarray(ids), 6), np.asarray), ids)
    wide = saved(tmp_path / "w.png", Image.fromarray(ids.astype(np.uint16) * 300))
    np.testing.assert_array_equal(open_ids(wide, np.asarray), ids.astype(int) * 300)


@pytest.mark.parametrize("values, kind", [(EIGHT, "JPEG"), (EIGHT.astype(np.float32), "TIFF")])
def test_masks_of_fractions_or_lossy_formats_are_refused(tmp_path, values, kind):
    path = saved(tmp_path / "m.png", Image.fromarray(values), format=kind)
    with pytest.raises(UserError, match="mask"):
        open_ids(path, np.asarray)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"optimize": True, "comment": b"x" * 300}, {"quality": 5}, {"dpi": (9, 9)}]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_markers_of_a_jpeg_tell_what_pillow_tells(options, mode, tmp_path):
    file = tmp_path / "a.jpg"
    Image.new(mode, (37, 21)).save(file, "JPEG", **options)
    assert images._plain_jpeg(file) == images.probe(file) == images.size_of(file) == (37, 21)
    whole = file.read_bytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new(mode, (37, 21)).save(file, "JPEG", exif=exif, **options)
    assert images._plain_jpeg(file) is None and images.probe(file) == (21, 37)
    for damaged in (b"", whole[:2], whole[:40], whole[:-2], b"\xff\xd8" + b"\xff" * 500, whole[:4] + whole[30:]):
        file.write_bytes(damaged)
        assert images._plain_jpeg(file) is None
        with pytest.raises(images.ImageError):
            images.probe(file)
