"""Data sets of boxes: three formats, problems, the rule for mixed pictures, transforms, scores."""

import json

import pytest
import torch
from ks_detection.check import check, describe
from ks_detection.data import transforms
from ks_detection.data.folders import load
from ks_detection.data.records import find_box_problem
from ks_detection.data.scenes import digit_scenes
from ks_detection.scores import Found, Truth, coco_scores
from PIL import Image

from common.errors import UserError

BOX = [10, 20, 30, 15]  # left, top, width, height


def coco_folder(folder, annotations=None, size=(100, 80), categories=None):
    """A COCO folder of two pictures with sparse ids; `annotations` replaces those of the training part."""
    categories = categories or [{"id": 7, "name": "cat"}, {"id": 90, "name": "dog"}]
    for part in ("train", "val"):
        (folder / f"{part}2017").mkdir(parents=True)
        Image.new("RGB", size, "gray").save(folder / f"{part}2017" / "a.jpg")
        images = [{"id": 5, "file_name": "a.jpg", "width": size[0], "height": size[1]}]
        entries = [{"id": 1, "image_id": 5, "category_id": 7, "bbox": BOX, "iscrowd": 0}]
        entries += [{"id": 2, "image_id": 5, "category_id": 90, "bbox": [50, 10, 20, 20], "iscrowd": 0}]
        if part == "train" and annotations is not None:
            entries = annotations
        data = {"images": images, "annotations": entries, "categories": categories}
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(data))
    return folder


def voc_folder(folder):
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for part in ("train", "val"):
        Image.new("RGB", (100, 80)).save(folder / "JPEGImages" / f"{part}.jpg")
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text(f"{part}\n")
        (folder / "Annotations" / f"{part}.xml").write_text(
            f"<annotation><filename>{part}.jpg</filename><size><width>100</width><height>80</height></size>"
            "<object><name>cat</name><bndbox><xmin>10</xmin><ymin>20</ymin><xmax>40</xmax><ymax>35</ymax></bndbox>"
            "</object></annotation>"
        )
    return folder


def yolo_folder(folder):
    for part in ("train", "val"):
        (folder / "images" / part).mkdir(parents=True)
        (folder / "labels" / part).mkdir(parents=True)
        Image.new("RGB", (100, 80)).save(folder / "images" / part / "a.png")
        (folder / "labels" / part / "a.txt").write_text("0 0.25 0.34375 0.3 0.1875\n")
    (folder / "data.yaml").write_text("names: [cat, dog]\n")
    return folder


@pytest.mark.parametrize("make", [coco_folder, voc_folder, yolo_folder])
def test_three_formats_give_the_same_box(tmp_path, make):
    data = load(str(make(tmp_path / "set")))
    thing = data.train[0].annotations[0]
    assert thing.label == "cat" and thing.box == pytest.approx((10, 20, 40, 35))
    assert data.train[0].open().size == (100, 80) and "cat" in data.classes


def test_sparse_ids_are_kept_and_sets_join_by_class_name(tmp_path):
    data = load(f"{coco_folder(tmp_path / 'a')},{yolo_folder(tmp_path / 'b')}")
    assert data.ids == {"cat": 7, "dog": 90} and data.classes == ["cat", "dog"] and len(data.train) == 2
    assert any("id 90" in line for line in describe("data", data))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"bbox": [90, 20, 30, 15]}, "box outside"),
        ({"category_id": 3}, "category_id 3 is not in"),
        ({"image_id": 9}, "image_id 9 is not in"),
        ({"bbox": [float("nan"), 0, 1, 1]}, "not a number"),
    ],
)
def test_a_problem_that_spoils_a_run_stops_it_in_one_line(tmp_path, entry, message):
    bad = {"id": 1, "image_id": 5, "category_id": 7, "bbox": BOX} | entry
    with pytest.raises(UserError, match=message) as caught:
        load(str(coco_folder(tmp_path / "set", [bad])))
    assert "\n" not in str(caught.value)


def test_missing_and_damaged_files_are_found(tmp_path):
    folder = coco_folder(tmp_path / "set")
    (folder / "val2017" / "a.jpg").write_bytes(b"no image")
    kinds = {problem.kind for problem in check(str(folder))[1]}
    assert "corrupt image" in kinds
    (folder / "val2017" / "a.jpg").unlink()
    with pytest.raises(UserError, match="missing image"):
        load(str(folder))
    with pytest.raises(UserError, match="no such folder"):
        load(str(tmp_path / "none"))
    with pytest.raises(UserError, match="no layout known"):
        load(str(folder / "train2017"))


def test_check_lists_every_problem_and_keeps_going(tmp_path):
    def entry(number, box, **more):
        return {"id": number, "image_id": 5, "category_id": 7, "bbox": box} | more

    entries = [
        entry(1, [0, 0, 0, 9]),
        entry(2, BOX),
        entry(3, BOX),
        entry(4, [0, 0, 50, 50], iscrowd=1),
        entry(5, [-9, 0, 5, 5]),
    ]
    _, problems = check(str(coco_folder(tmp_path / "set", entries)))
    assert {p.kind for p in problems} >= {"empty box", "duplicate", "crowd", "box outside", "no objects"}
    assert [p.kind for p in problems if p.fatal] == ["box outside"]


def test_a_pixel_of_rounding_is_no_problem():
    assert find_box_problem((-0.6, 0, 10, 10.9), 10, 10) is None
    assert find_box_problem((-2, 0, 10, 10), 10, 10)[0] == "box cut"
    assert find_box_problem((-9, 0, 4, 10), 10, 10)[0] == "box outside"
    assert find_box_problem((10.2, 0, 10.9, 10), 10, 10)[0] == "empty box"


def test_digit_scenes_are_the_same_everywhere_and_hold_only_the_digits_asked_for():
    counts = {"train": 6, "test": 3}
    first, second = (digit_scenes("0123", counts=counts) for _ in range(2))
    assert first.train[4].image.tobytes() == second.train[4].image.tobytes()
    labels = {t.label for p in first.train + first.test for t in p.annotations}
    assert labels <= set("0123") and all(p.annotations for p in first.train)
    assert all(find_box_problem(t.box, 128, 128) is None for p in first.train for t in p.annotations)
    with pytest.raises(UserError, match="name digits"):
        digit_scenes("abc")


def test_augmentation_is_a_function_of_the_seed_and_boxes_follow_their_object():
    image = torch.zeros(3, 100, 120, dtype=torch.uint8)
    image[:, 30:50, 60:90] = 255
    boxes, labels = torch.tensor([[60.0, 30, 90, 50]]), torch.tensor([4])
    recipe = transforms.Recipe((80, 100), 200, (100, 110), (70, 100), 100)
    transform, other = transforms.train_transform(recipe), torch.tensor([False])
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    for seed in range(12):
        results = [transforms.apply(transform, image, boxes, labels, other, seed) for _ in range(2)]
        torch.testing.assert_close(results[0][0], results[1][0])
        found, where = results[0][0], results[0][1]
        if len(where) and (where[0, 2:] - where[0, :2]).min() > 4:
            left, top, right, bottom = where[0].round().int().tolist()
            assert found[0, top + 2 : bottom - 2, left + 2 : right - 2].mean() > 1.5  # the object is still in its box
    assert torch.equal(before, torch.random.get_rng_state())


def test_scores_are_coco_s():
    annotations = [("cat", (10, 10, 30, 30), False), ("dog", (40, 40, 60, 60), False)]
    truths = [Truth("a", 100, 100, annotations), Truth("b", 100, 100, [("cat", (0, 0, 50, 50), False)])]
    right = [
        Found([0.9, 0.8], ["cat", "dog"], [[10, 10, 30, 30], [40, 40, 60, 60]]),
        Found([0.7], ["cat"], [[0, 0, 50, 50]]),
    ]
    perfect = coco_scores(truths, right, ["cat", "dog", "bird"])
    assert perfect.ap == pytest.approx(100) and perfect.per_class == {
        "cat": pytest.approx(100),
        "dog": pytest.approx(100),
    }
    half = coco_scores(truths, [right[0], Found([], [], [])], ["cat"])
    assert half.ap50 == pytest.approx(100 * 51 / 101, abs=0.5) and len(half.curves["cat"]) == 101
    shifted = coco_scores(truths, [right[0], Found([0.7], ["cat"], [[0, 0, 50, 35]])], ["cat"])  # IoU 0.7
    assert shifted.ap50 == pytest.approx(100) and shifted.ap < 80
    assert coco_scores(truths, [Found([], [], [])] * 2, ["cat"]).ap == 0.0
