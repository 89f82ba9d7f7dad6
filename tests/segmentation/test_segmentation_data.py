"""Folder layouts, mask files, the scan for classes, and augmentation."""

import json

import numpy as np
import pytest
import torch
from ks_segmentation.config.load import load_config
from ks_segmentation.data import class_lists, layouts
from ks_segmentation.data.augment import scoring_view, train_view
from ks_segmentation.data.digits import digit_scenes
from ks_segmentation.data.masks import IGNORE, plain
from ks_segmentation.data.scan import scan
from PIL import Image

from common import notes
from common.errors import UserError

SIZE = (12, 16)  # height, width


def picture(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path)


def mask(path, ids, size=SIZE):
    """A PNG whose top half holds the first id and whose bottom half the second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full(size, ids[1], np.uint8)
    array[: size[0] // 2] = ids[0]
    Image.fromarray(array).save(path)


def classes_of(item):
    return sorted(np.unique(item.ids()).tolist())


def test_ade20k_labels_are_shifted_unless_they_were_prepared(tmp_path):
    for split in ("training", "validation"):
        picture(tmp_path / f"images/{split}/a.jpg")
        mask(tmp_path / f"annotations/{split}/a.png", (0, 150))
    found = layouts.load(f"ade20k:{tmp_path}")
    assert len(found.classes) == 150 and classes_of(found.train[0]) == [149, IGNORE]
    for split in ("training", "validation"):
        mask(tmp_path / f"annotations_detectron2/{split}/a.png", (3, 255))
    assert classes_of(layouts.load(f"ade20k:{tmp_path}").test[0]) == [3, IGNORE]


def test_voc(tmp_path):
    picture(tmp_path / "JPEGImages/x.jpg")
    mask(tmp_path / "SegmentationClass/x.png", (15, 255))
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("x\n")
    found = layouts.load(f"voc:{tmp_path}")
    assert classes_of(found.train[0]) == [15, IGNORE] and found.classes[15] == "person" and not found.test


def test_masks_beside_images_and_a_list_of_names_are_enough(tmp_path, capsys):
    for stem in "abcde":
        picture(tmp_path / f"images/{stem}.jpg")
        mask(tmp_path / f"masks/{stem}.png", (0, 1))
    (tmp_path / "classes.txt").write_text("ground\nred cat\n")
    found = layouts.load(str(tmp_path))
    assert found.classes == ("ground", "red cat") and len(found.test) == 1 and classes_of(found.train[0]) == [0, 1]
    notes.tell(True)
    assert "every fifth image tests (1 of 5)" in capsys.readouterr().err


def test_parts_may_hold_images_and_masks_and_ids_may_have_gaps(tmp_path):
    for part in ("Train", "valid"):
        picture(tmp_path / part / "images/a.JPG")
        mask(tmp_path / part / "masks/A.PNG", (0, 7))
        (tmp_path / part / "images/._a.JPG").write_bytes(b"x")
    (tmp_path / "classes.json").write_text('{"classes": {"7": "car", "0": "road"}}')
    found = layouts.load(str(tmp_path))
    assert found.classes == ("road", "car") and classes_of(found.train[0]) == classes_of(found.test[0]) == [0, 1]


@pytest.mark.parametrize("ending", [".png", "_mask.PNG"])
@pytest.mark.parametrize("parts", [("",), ("train", "valid")])
def test_a_mask_may_lie_beside_its_image(ending, parts, tmp_path):
    for part in parts:
        for stem in "abcde":
            picture(tmp_path / part / f"my {stem}.JPG")
            mask(tmp_path / part / f"my {stem}{ending}", (0, 1))
    (tmp_path / "classes.txt").write_text("ground\ncat\n")
    found = layouts.load(str(tmp_path))
    assert [len(found.train), len(found.test)] == ([4, 1] if parts == ("",) else [5, 5])
    assert all(classes_of(item) == [0, 1] and item.image.suffix == ".JPG" for item in found.train + found.test)
    picture(tmp_path / parts[0] / "alone.jpg")
    with pytest.raises(UserError, match=r"alone.jpg has no mask alone.png or alone_mask.png"):
        layouts.load(str(tmp_path))


def test_folders_have_their_usual_names_in_letters_of_any_case(tmp_path):
    for part in ("Train", "Val"):
        picture(tmp_path / "Imgs" / part / "a.jpg")
        mask(tmp_path / "Masks" / part.lower() / "a.png", (0, 1))
    found = layouts.load(str(tmp_path), ["ground", "cat"])
    assert classes_of(found.train[0]) == classes_of(found.test[0]) == [0, 1]
    with pytest.raises(UserError, match="have no names; write classes.json"):
        layouts.load(str(tmp_path))


def labelme(path, points, **change):
    picture(path.with_suffix(".jpg"))
    shape = {"label": "cat", "points": points, "shape_type": "polygon"} | change
    content = {
        "version": "5",
        "shapes": [shape],
        "imagePath": "C:\\x.jpg",
        "imageHeight": SIZE[0],
        "imageWidth": SIZE[1],
    }
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("parts", [("",), ("train", "val")])
def test_outlines_of_labelme(parts, tmp_path):
    for part in parts:
        for stem in "abcd":
            labelme(tmp_path / part / f"my {stem}.json", [[0, 0], [16, 0], [16, 6], [0, 6]])
        labelme(tmp_path / part / "e.json", [[16, 6], [0, 0]], shape_type="rectangle")
    found = layouts.load(str(tmp_path))
    assert found.classes == ("background", "cat") and len(found.test) == (1 if parts == ("",) else 5)
    for item in found.train + found.test:
        assert item.pixels().shape[:2] == SIZE and (item.ids() == 1).sum() == 6 * 16 and (item.ids()[:6] == 1).all()


@pytest.mark.parametrize(
    ("points", "change", "message"),
    [
        ([[1, 1], [4, 4]], {}, "no polygon of three corners"),
        ([[1, 1], [4, 4]], {"shape_type": "circle"}, r"\(circle\)"),
        ([[1, 1], [4, 4], [1e9, 3]], {}, "no polygon"),
        ([[1, 1], [4, 4], [3]], {}, "points"),
    ],
)
def test_outlines_that_are_no_masks_are_one_line(points, change, message, tmp_path):
    labelme(tmp_path / "a.json", points, **change)
    with pytest.raises(UserError, match=message):
        layouts.load(str(tmp_path))


@pytest.mark.parametrize("corners", [[0, 0, 1e9, 0, 1e9, 1e9], [0, 0, float("nan"), 0, 5, 5], [1, 1, 5, 1, 5, 5, 3]])
def test_polygons_far_outside_an_image_are_refused(corners, tmp_path):
    for part in ("train", "valid"):
        picture(tmp_path / part / "a.jpg")
        shape = {"id": 1, "image_id": 7, "category_id": 1, "segmentation": [corners]}
        content = {
            "images": [{"id": 7, "file_name": "a.jpg"}],
            "annotations": [shape],
            "categories": [{"id": 1, "name": "cat"}],
        }
        (tmp_path / part / "_annotations.coco.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="annotation 1"):
        layouts.load(str(tmp_path))


def test_masks_of_roboflow(tmp_path):
    for part in ("train", "valid"):
        picture(tmp_path / part / "a.jpg")
        mask(tmp_path / part / "a_mask.png", (0, 3))
        (tmp_path / part / "_classes.csv").write_text("Pixel Value, Class\n0, ground\n3, red cat\n")
    found = layouts.load(str(tmp_path))
    assert found.classes == ("ground", "red cat") and len(found.train) == 1 and classes_of(found.test[0]) == [0, 1]
    (tmp_path / "valid/_classes.csv").write_text("Pixel Value, Class\nx, ground\n")
    with pytest.raises(UserError, match="one line per class"):
        layouts.load(str(tmp_path))


@pytest.mark.parametrize("roboflow", [True, False])
def test_shapes_of_objects_become_masks(roboflow, tmp_path):
    half = {"size": list(SIZE), "counts": [0, *[6] * 32]}  # the upper half of each column
    shapes = [half, [[2, 1, 6, 1, 6, 5, 2, 5]], [[8, 8, 12, 8, 12, 11, 8, 11]]]
    for part in ("train", "valid"):
        place = tmp_path / part if roboflow else tmp_path / "images" / part
        picture(place / "a b.jpg")
        entries = [{"id": i, "image_id": "7", "category_id": c, "iscrowd": int(i == 0), "segmentation": shape}
                   for i, (c, shape) in enumerate(zip((9, 4, 4), shapes, strict=True))]  # fmt: skip
        names = [{"id": 4, "name": "cat"}, {"id": 9, "name": "grass"}]
        content = {"images": [{"id": 7, "file_name": "a b.jpg"}], "annotations": entries, "categories": names}
        file = place / "_annotations.coco.json" if roboflow else tmp_path / f"annotations/instances_{part}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))
    found = layouts.load(str(tmp_path))
    assert found.classes == ("background", "cat", "grass") and len(found.train) == len(found.test) == 1
    pixels, ids = found.train[0].pair()
    assert pixels.shape[:2] == ids.shape == SIZE
    assert (ids[0] == 2).all() and ids[3, 4] == 1 and ids[9, 10] == 1 and ids[-1, 0] == 0
    assert scan(found.train)[0].keys() == {0, 1, 2}
    file.write_text(json.dumps(content | {"annotations": [{"image_id": 7, "category_id": 4, "bbox": [1, 2, 3, 4]}]}))
    with pytest.raises(UserError, match="boxes alone are no masks"):
        layouts.load(str(tmp_path))


def test_coco_panoptic_becomes_one_mask_per_category(tmp_path):
    picture(tmp_path / "train2017/1.jpg")
    folder = tmp_path / "annotations/panoptic_train2017"
    folder.mkdir(parents=True)
    ids = np.zeros((*SIZE, 3), np.uint8)
    ids[:4] = (1, 2, 0)  # segment 513
    ids[4:8] = (7, 0, 1)  # segment 65543, the same category
    Image.fromarray(ids).save(folder / "1.png")
    data = {
        "categories": [{"id": 9, "name": "sky"}, {"id": 4, "name": "cow"}],
        "images": [{"id": 1, "file_name": "1.jpg"}],
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": [
            {"id": 513, "category_id": 9}, {"id": 65543, "category_id": 9}]}],
    }  # fmt: skip
    folder.with_suffix(".json").write_text(json.dumps(data))
    found = layouts.load(f"coco:{tmp_path}")
    assert found.classes == ("cow", "sky") and classes_of(found.train[0]) == [1, IGNORE]


@pytest.mark.parametrize(("ending", "ids"), [("labelTrainIds", (13, 255)), ("labelIds", (26, 0))])
def test_cityscapes_takes_both_kinds_of_masks(ending, ids, tmp_path):
    picture(tmp_path / "leftImg8bit/train/bonn/bonn_1_leftImg8bit.png")
    mask(tmp_path / f"gtFine/train/bonn/bonn_1_gtFine_{ending}.png", ids)
    found = layouts.load(f"cityscapes:{tmp_path}")
    assert classes_of(found.train[0]) == [13, IGNORE] and found.classes[13] == "car"


def test_pet_masks_carry_the_breed(tmp_path):
    for stem in ("beagle_1", "Bengal_2"):
        picture(tmp_path / f"images/{stem}.jpg")
        mask(tmp_path / f"annotations/trimaps/{stem}.png", (1, 3))
    (tmp_path / "annotations/trainval.txt").write_text("beagle_1 5 2 1\nBengal_2 6 1 1\n")
    found = layouts.load(f"pet:{tmp_path}")
    assert found.classes == ("beagle", "Bengal")
    assert [classes_of(i) for i in found.train] == [[0, IGNORE], [1, IGNORE]]


def test_deepglobe_colours(tmp_path):
    picture(tmp_path / "train/7_sat.jpg")
    colours = np.zeros((*SIZE, 3), np.uint8)
    colours[:6] = (3, 250, 1)  # forest, saved with some noise
    Image.fromarray(colours).save(tmp_path / "train/7_mask.png")
    (item,) = layouts.load(f"deepglobe:{tmp_path}").train
    assert classes_of(item) == [class_lists.DEEPGLOBE.index("forest_land"), IGNORE]


@pytest.fixture
def own(tmp_path):
    """A folder of our own layout with two classes."""
    (tmp_path / "classes.json").write_text(json.dumps({"classes": {"0": "a", "1": "b"}, "ignore_index": 9}))
    for i in range(5):
        picture(tmp_path / f"images/{i}.png")
        mask(tmp_path / f"annotations/{i}.png", (i % 2, 9))
    return tmp_path


def test_a_flat_folder_gives_every_fifth_picture_to_the_test(own):
    found = layouts.load(str(own))
    assert found.classes == ("a", "b") and [i.name for i in found.test] == ["images/4.png"]
    assert [sorted(c) for c in scan(found.train)] == [[0], [1], [0], [1]]


def test_a_flat_folder_may_have_just_a_list_of_names_and_state_its_test_images(own):
    for i in range(5):
        mask(own / f"annotations/{i}.png", (i % 2, 255))
    (own / "classes.json").write_text(json.dumps(["a", "b"]))
    found = layouts.load(str(own))
    assert found.classes == ("a", "b") and [i.name for i in found.test] == ["images/4.png"]
    (own / "classes.json").write_text(json.dumps({"classes": ["a", "b"], "splits": {"val": ["1", "3.png"]}}))
    assert [i.name for i in layouts.load(str(own)).test] == ["images/1.png", "images/3.png"]
    (own / "classes.json").unlink()
    assert layouts.load(str(own), ["x", "y"]).classes == ("x", "y")
    with pytest.raises(UserError, match="write classes.json there or give --data-classes"):
        layouts.load(str(own))
    with pytest.raises(UserError, match="`--data-classes`: voc data names its classes itself"):
        layouts.load(f"voc:{own}", ["x", "y"])


@pytest.mark.parametrize(
    "text",
    ["3", "null", "[1, 2]", '"ab"', '{"names": ["a"]}', '{"classes": {"first": "a"}}', '{"classes": [{"id": 0}]}', "[",
     '{"classes": ["a"], "ignore_index": "none"}', '{"classes": ["a"], "ignore_index": null}', '{"classes": ["a"], "splits": 3}'],
)  # fmt: skip
def test_class_lists_of_another_form_get_one_line(text, own):
    (own / "classes.json").write_text(text)
    with pytest.raises(UserError, match="classes.json must be .* or just the list of names") as found:
        layouts.load(str(own))
    assert "\n" not in str(found.value)


def test_the_ignored_id_may_have_a_name_in_the_list(own):
    (own / "classes.json").write_text(json.dumps({"classes": ["a", "none", "b"], "ignore_index": 1}))
    mask(own / "annotations/0.png", (2, 1))
    mask(own / "annotations/1.png", (0, 1))
    found = layouts.load(str(own))
    assert found.classes == ("a", "b") and [classes_of(i) for i in found.train[:2]] == [[1, IGNORE], [0, IGNORE]]


def published_folders(root):
    for part in ("train", "test"):
        picture(root / f"learn/{part}/images/n_sat.jpg")
        mask(root / f"learn/{part}/annotations/n_mask.png", (150, 255))
    for name, ids in (("forget", (3, 255)), ("retain", (4, 255))):
        for part in ("training", "validation"):
            picture(root / f"{name}/images/{part}/o.jpg")
            mask(root / f"{name}/annotations_detectron2/{part}/o.png", ids)
    return [str(root / name) for name in ("learn", "forget", "retain")]


def test_the_three_published_folders(tmp_path):
    found = layouts.published(*published_folders(tmp_path), "sat", class_lists.ADE20K)
    assert len(found.classes) == 156 and found.classes[150] == "urban_land"
    assert found.classes[154] == "water (sat)"  # ADE20K has a water of its own
    assert [classes_of(i)[0] for i in found.train] == [150, 3, 4] and len(found.test) == 3


def test_a_mask_of_another_size_is_named(own):
    mask(own / "annotations/2.png", (0, 1), size=(3, 4))
    with pytest.raises(UserError, match="images/2.png is 16x12 pixels but its mask .*2.png is 4x3"):
        scan(layouts.load(str(own)).train)


def test_an_id_outside_the_list_is_named(own):
    mask(own / "annotations/2.png", (0, 77))
    with pytest.raises(UserError, match=r"2.png holds the id 77.*\(ids 0-1, 9, 255\)"):
        scan(layouts.load(str(own)).train)


def test_other_mistakes_get_one_line(own, tmp_path):
    with pytest.raises(UserError, match="unknown kind"):
        layouts.load("zoo:x")
    with pytest.raises(UserError, match="no folder"):
        layouts.load("voc:/nowhere")
    (own / "annotations/3.png").unlink()
    with pytest.raises(UserError, match="has no mask"):
        layouts.load(str(own))
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(own / "annotations/3.png")
    with pytest.raises(UserError, match="3 channels"):
        scan(layouts.load(str(own)).train)
    (own / "annotations/3.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="cannot be read"):
        scan(layouts.load(str(own)).train)


def test_the_scan_is_remembered_until_a_mask_changes(own, tmp_path, monkeypatch):
    items = layouts.load(str(own)).train
    cache = str(tmp_path / "cache")
    first = scan(items, cache)
    with monkeypatch.context() as patch:
        patch.setattr("ks_segmentation.data.scan.pixels_per_class", lambda item: pytest.fail("read again"))
        assert scan(items, cache) == first
    mask(own / "annotations/0.png", (1, 1), size=SIZE)
    import os

    os.utime(own / "annotations/0.png", ns=(1, 1))
    assert sorted(scan(items, cache)[0]) == [1]


def test_digit_scenes_are_the_same_at_every_call():
    a, b = digit_scenes(3, 2), digit_scenes(3, 2)
    for x, y in zip(a.train + a.test, b.train + b.test, strict=True):
        assert np.array_equal(x.image, y.image) and np.array_equal(x.mask, y.mask)
    assert not np.array_equal(a.train[0].image, a.test[0].image)
    assert len(a.classes) == 11 and a.train[0].image.shape == (64, 64, 3)


INPUT = load_config(None, ["INPUT.CROP.SIZE", [32, 40], "INPUT.MIN_SIZE_TRAIN", [20, 48]]).INPUT


@pytest.mark.parametrize("seed", range(8))
def test_a_view_is_a_function_of_its_seed_and_has_the_crops_size(seed):
    image = torch.randint(0, 256, (3, 30, 50), dtype=torch.uint8)
    labels = torch.full((30, 50), IGNORE)
    labels[:3, :3] = 1
    before = torch.get_rng_state()
    a, b = (train_view(image, labels, INPUT, seed, IGNORE) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert a[0].shape == (3, 32, 40) and a[1].shape == (32, 40) and a[0].dtype == torch.uint8
    assert 1 in a[1]  # a crop that holds a class is looked for


def test_picture_and_labels_move_together():
    settings = load_config(
        None, ["INPUT.CROP.SIZE", [24, 24], "INPUT.MIN_SIZE_TRAIN", [32], "INPUT.COLOR_AUG_SSD", False]
    ).INPUT
    labels = torch.zeros(32, 32, dtype=torch.long)
    labels[5:20, 9:13] = 1
    image = (labels * 200).to(torch.uint8).expand(3, -1, -1)
    for seed in range(6):
        view, moved = train_view(image, labels, settings, seed, IGNORE)
        assert torch.equal((view[0] > 100).long(), moved)


def test_scoring_view_keeps_the_aspect():
    settings = load_config(None, ["INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 100]).INPUT
    assert scoring_view(torch.zeros(3, 32, 40, dtype=torch.uint8), settings).shape == (3, 64, 80)
    assert scoring_view(torch.zeros(3, 32, 100, dtype=torch.uint8), settings).shape == (3, 32, 100)


def test_plain_ids():
    assert plain(2).apply(np.array([[0, 1, 255]]), "x").tolist() == [[0, 1, IGNORE]]
    assert plain(2, first=1).apply(np.array([[0, 1, 2]]), "x").tolist() == [[IGNORE, 0, 1]]
