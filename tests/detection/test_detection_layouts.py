"""Boxes as people have them: labelImg's folders, Roboflow's exports, tables, run lengths, odd pictures; and `check --fix`."""

import json

import numpy as np
import pytest
from ks_detection.check import check
from ks_detection.data.folders import load
from ks_detection.session import SESSION
from PIL import Image
from pycocotools import mask

from common import commands
from common.coco import Runs
from common.errors import UserError

CORNERS = (10, 20, 40, 35)
XML = (
    "<annotation><filename>{name}</filename><size><width>{w}</width><height>{h}</height></size><object><name>cat</name>"
    "<bndbox><xmin>10</xmin><ymin>20</ymin><xmax>40</xmax><ymax>35</ymax></bndbox></object></annotation>"
)


def pictures(folder, *names, size=(100, 80)):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.effect_noise(size, 60).convert("RGB").save(folder / name)


def labelimg(root):
    """Images, .xml and names of all kinds in one folder."""
    names = ["IMG 01.JPG", "b.jpeg", "c.jpg.rf.0a1b.jpg", "d.png", "e.bmp", "f.webp"]
    pictures(root, *names)
    for name in names:
        stem, size = name.rpartition(".")[0], (0, 0) if name == "d.png" else (100, 80)
        stated = "C:\\pictures\\old name.jpg" if name == "b.jpeg" else name
        ending = "XML" if name == "e.bmp" else "xml"
        (root / f"{stem}.{ending}").write_text(XML.format(name=stated, w=size[0], h=size[1]))


def coco(folder, file, categories=({"id": 1, "name": "cat"},), **change):
    pictures(folder, "a.rf.1f2e.jpg")
    entry = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [10, 20, 30, 15], "iscrowd": 0} | change
    image = {"id": 0, "file_name": "a.rf.1f2e.jpg", "width": 100, "height": 80}
    content = {"images": [image], "annotations": [entry], "categories": list(categories)}
    (folder / file).write_text(json.dumps(content))


def roboflow_coco(root):
    for part in ("train", "valid"):
        above = {"id": 0, "name": "animals", "supercategory": "none"}
        coco(root / part, "_annotations.coco.json", [above, {"id": 1, "name": "cat", "supercategory": "animals"}])


def roboflow_voc(root):
    for part in ("train", "valid"):
        pictures(root / part, "a.rf.1f2e.jpg")
        (root / part / "a.rf.1f2e.xml").write_text(XML.format(name="a.rf.1f2e.jpg", w=100, h=80))


def roboflow_yolo(root):
    for part in ("train", "valid"):
        pictures(root / part / "images", "a.rf.1f2e.jpg")
        (root / part / "labels").mkdir()
        (root / part / "labels/a.rf.1f2e.txt").write_text("0 0.25 0.34375 0.3 0.1875\n")
    (root / "data.yaml").write_text("names: [cat]\ntrain: ../train/images\n")


def yolo_polygons(root):
    roboflow_yolo(root)
    for part in ("train", "valid"):
        (root / part / "labels/a.rf.1f2e.txt").write_text("0 0.1 0.25 0.4 0.25 0.4 0.4375 0.2 0.4\n")


def yolo_beside(root):
    pictures(root, "a.jpg", "b.jpg")
    for stem in "ab":
        (root / f"{stem}.txt").write_text("0 0.25 0.34375 0.3 0.1875\n")
    (root / "classes.txt").write_text("cat\n")


def roboflow_csv(root):
    for part in ("train", "test"):
        pictures(root / part, "a.jpg")
        (root / part / "_annotations.csv").write_text(
            "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,100,80,cat,10,20,40,35\n"
        )


def bare_csv(root):
    for part in ("train", "val"):
        pictures(root / part, "a b.jpg")
        (root / f"{part}.csv").write_text(f"{part}/a b.jpg,10,20,40,35,cat\n")


def image_folder(root):
    for part in ("train", "validation"):
        pictures(root / part, "a.png")
        line = {"file_name": "a.png", "objects": {"bbox": [[10, 20, 30, 15]], "categories": ["cat"]}}
        (root / part / "metadata.jsonl").write_text(json.dumps(line) + "\n")


def xml_apart(root):
    """images/<class>/ and annotations/, as surface inspection sets have them."""
    for part in ("train", "validation"):
        pictures(root / part / "images/cat", "a.jpg")
        (root / part / "annotations").mkdir()
        (root / part / "annotations/a.xml").write_text(XML.format(name="a", w=100, h=80))


def xml_labels(root, parts=("",), images="images", labels="labels"):
    for part in parts:
        pictures(root / images / part, "a b.JPG", "c.jpg")
        (root / labels / part).mkdir(parents=True)
        for name in ("a b", "c"):
            (root / labels / part / f"{name}.xml").write_text(XML.format(name=f"{name}.jpg", w=100, h=80))


def xml_labels_of_parts(root):
    xml_labels(root, ("Train", "Val"), "Images", "Labels")


def one_coco_file(root):
    (root / "images").mkdir(parents=True)
    names = [f"{i}.jpg" for i in range(5)]
    pictures(root / "images", *names)
    images = [{"id": i, "file_name": n, "width": 100, "height": 80} for i, n in enumerate(names)]
    entries = [{"id": i, "image_id": i, "category_id": 1, "bbox": [10, 20, 30, 15]} for i in range(5)]
    (root / "annotations").mkdir()
    content = {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "cat"}]}
    (root / "annotations/instances_default.json").write_text(json.dumps(content))


def labels_of(entries, number=5):
    """COCO's tables of images 0.jpg ... with a box each."""
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 80} for i in range(number)]
    return {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "cat"}]}


def box_of(i, **change):
    return {"id": i, "image_id": i, "category_id": 1, "bbox": [10, 20, 30, 15]} | change


def one_part_of_coco(root):
    """What one downloads to try: val2017 alone, with all the annotation files of COCO."""
    pictures(root / "val2017", *(f"{i}.jpg" for i in range(5)))
    (root / "annotations").mkdir()
    (root / "annotations/instances_val2017.json").write_text(json.dumps(labels_of([box_of(i) for i in range(5)])))
    (root / "annotations/captions_val2017.json").write_text("{}")


def strange_coco(root):
    """Ids as text, paths of another machine, no sizes, names in another case, part names of their own."""
    for part, number in (("train", 4), ("test", 2)):
        pictures(root / "images" / part / "day 1", *(f"{i}.JPG" for i in range(number)))
        content = labels_of([box_of(i, image_id=str(i), category_id="1") for i in range(number)], number)
        for image in content["images"]:
            image |= {"file_name": f"C:\\data\\{image['file_name']}"}
            del image["width"], image["height"]
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/{part}.json").write_text(json.dumps(content))


def training_part_only(root):
    """An export without validation images, unpacked into a folder of its own, as macOS does."""
    place = root / "my project" / "train"
    labelimg(place)
    (root / "__MACOSX").mkdir()
    (place / "._d.xml").write_bytes(b"\0\5\x16\7")
    (place / "._d.png").write_bytes(b"\0\5\x16\7")
    (root / "my project/README.dataset.txt").write_text("cats")


def xml_by_class(root):
    """A folder per class, with the same file names in both, and names of renamed pictures in the files."""
    for place in ("a cat", "b cat"):
        pictures(root / place, "1.jpg", "2.jpg", "3.tif")
        for stem in "123":
            (root / place / f"{stem}.xml").write_text(XML.format(name="1.jpg", w=100, h=80))


def voc_without_val(root):
    labelimg(root / "JPEGImages")
    (root / "Annotations").mkdir(parents=True)
    for file in [*(root / "JPEGImages").glob("*.xml"), *(root / "JPEGImages").glob("*.XML")]:
        file.rename(root / "Annotations" / f"{file.stem}.xml")
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("d\ne\n")
    (root / "ImageSets/Main/test.txt").write_text("f\n")


def yolo_without_parts(root):
    pictures(root / "images", "a.jpg", "b.tif")
    (root / "labels").mkdir()
    for stem in "ab":
        (root / f"labels/{stem}.txt").write_text("0 0.25 0.34375 0.3 0.1875\n")
    (root / "labels/classes.txt").write_text("cat\n")
    (root / "notes.json").write_text("{}")


def excel_csv(root):
    pictures(root / "pictures", "a.jpg", "b.jpg")
    lines = ["Image;Label;X1;Y1;X2;Y2", *(f"{name}.jpg;cat;10;20;40;35" for name in "ab")]
    (root / "boxes.csv").write_text("\n".join(lines), "utf-8-sig")


def saved_by_datasets(root, boxes=(10, 20, 30, 15)):
    import datasets

    def part(number):
        columns = {"image": datasets.Image(), "objects": {"bbox": [[datasets.Value("float32")]], "category": [datasets.ClassLabel(names=["cat"])]}}  # fmt: skip
        rows = {"image": [Image.effect_noise((100, 80), 60) for _ in range(number)],
                "objects": [{"bbox": [list(boxes)], "category": [0]}] * number}  # fmt: skip
        return datasets.Dataset.from_dict(rows, features=datasets.Features(columns))

    datasets.disable_progress_bars()
    datasets.DatasetDict({"train": part(3), "validation": part(1)}).save_to_disk(root)


def saved_with_corners(root):
    saved_by_datasets(root, (60, 20, 90, 65))


MAKERS = [one_part_of_coco, strange_coco, training_part_only, xml_by_class, voc_without_val, yolo_without_parts, excel_csv,
          saved_by_datasets, labelimg, roboflow_coco, roboflow_voc, roboflow_yolo, yolo_polygons, yolo_beside, roboflow_csv, bare_csv,
          image_folder, xml_apart, one_coco_file, xml_labels, xml_labels_of_parts]  # fmt: skip


@pytest.mark.parametrize("make", MAKERS)
def test_every_layout_gives_the_same_box_on_every_image(make, tmp_path):
    make(tmp_path / "set")
    data = load(str(tmp_path / "set"))
    assert data.train and data.test and data.classes == ["cat"]
    for record in [*data.train, *data.test]:
        (thing,) = record.annotations
        assert thing.label == "cat" and thing.box == pytest.approx(CORNERS, abs=1e-3)
        assert record.open().size == (record.width, record.height) == (100, 80)
    assert not {p.path or p.name for p in data.train} & {p.path or p.name for p in data.test}
    unsplit = make not in (roboflow_coco, roboflow_voc, roboflow_yolo, yolo_polygons, roboflow_csv, bare_csv, image_folder,
                           xml_apart, strange_coco, voc_without_val, saved_by_datasets, xml_labels_of_parts)  # fmt: skip
    assert unsplit == any("no split is given" in note for note in data.notes)
    assert not [p for p in check(str(tmp_path / "set"))[1] if p.fatal]


def test_boxes_that_can_only_be_corners_are_read_as_such(tmp_path):
    saved_with_corners(tmp_path / "set")
    assert load(str(tmp_path / "set")).test[0].annotations[0].box == (60, 20, 90, 65)


def test_a_split_gives_every_class_a_test_image(tmp_path):
    for name, number in (("a", 9), ("b", 2)):
        pictures(tmp_path / name, *(f"{name}{i}.jpg" for i in range(number)))
        for i in range(number):
            (tmp_path / f"{name}/{name}{i}.xml").write_text(XML.format(name="x", w=100, h=80).replace("cat", name))
    data = load(str(tmp_path))
    assert [p.name for p in data.test] == ["a1.jpg", "a6.jpg", "b1.jpg"] and len(data.train) == 8


def test_what_a_photo_set_holds_besides_is_told(tmp_path):
    pictures(tmp_path, "a.jpg", "b.jpg", "none.jpg", "empty.jpg")
    more = "<object><name>red cat</name><difficult>1</difficult><truncated>1</truncated><part><name>ear</name></part><bndbox>"
    more += "<xmin>60.5</xmin><ymin>20</ymin><xmax>104</xmax><ymax>35</ymax></bndbox></object></annotation>"
    for stem in "ab":
        text = XML.format(name=stem, w=100, h=80).replace("</annotation>", more)
        (tmp_path / f"{stem}.xml").write_text(text)
    (tmp_path / "empty.xml").write_text("<annotation><filename>empty.jpg</filename></annotation>")
    data = load(str(tmp_path))
    (test,) = (p for p in data.test if p.annotations)
    assert [(a.label, a.box, a.crowd) for a in test.annotations] == [("cat", CORNERS, False), ("red cat", (60.5, 20, 100, 35), True)]  # fmt: skip
    train = next(p for p in data.train if p.annotations)
    assert [a.crowd for a in train.annotations] == [False, False]
    assert any("difficult" in note for note in data.notes)
    told = {p.kind: p for p in check(str(tmp_path))[1]}
    assert not any(p.fatal for p in told.values())
    assert told["not annotated"].where.endswith("none.jpg") and "cut at the edge" in told["box cut"].text
    assert told["no objects"].where in ("empty.jpg", "class 'red cat'")
    (tmp_path / "b.xml").write_text((tmp_path / "b.xml").read_text().replace("red cat", "Red_cat"))
    assert any(p.kind == "similar names" and "'red cat'" in p.text for p in check(str(tmp_path))[1])


@pytest.mark.parametrize(
    "header, row",
    [
        ("File_Name,X Min,x_max,Y_MIN,ymax,Class Name", "{0}.jpg,10,40,20,35,cat"),
        ("image,bbox_x,bbox_y,bbox_width,bbox_height,label", "{0}.jpg,10,20,30,15,cat"),
        ("path;width;height;left;top;right;bottom;category", "{0}.jpg;100;80;10;20;40;35;cat"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_headers_of_tables_are_read_as_they_are_usual(header, row, end, tmp_path):
    pictures(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "x.csv").write_bytes(end.join([header, row.format("a"), row.format("b")]).encode())
    assert {r.annotations[0].box for r in load(str(tmp_path)).train} == {CORNERS}


def test_numbers_of_tables_are_plain_and_numbers_of_classes_have_names(tmp_path):
    pictures(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "x.csv").write_text(
        "filename,class,xmin,ymin,xmax,ymax\na.jpg,cat,1_0,20,40,35\nb.jpg,cat,10,20,40,35\n"
    )
    with pytest.raises(UserError, match="line 2"):
        load(str(tmp_path))
    (tmp_path / "x.csv").unlink()
    (tmp_path / "classes.txt").write_text("cat\n")
    lines = [
        {"file_name": f"{n}.jpg", "objects": {"bbox": [[10, 20, 30, 15]], "categories": [i]}}
        for i, n in enumerate("ab")
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match="class 1, but there are 1 names"):
        load(str(tmp_path))


def test_parts_of_an_image_are_no_pixels(tmp_path):
    pictures(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "b.csv").write_text("filename,class,xmin,ymin,xmax,ymax\na.jpg,cat,0.1,0.2,0.4,0.5\n")
    with pytest.raises(UserError, match="must be in pixels"):
        load(str(tmp_path))


@pytest.mark.parametrize("kind", ["numbers", "letters", "polygon"])
def test_a_shape_stands_for_a_missing_box(kind, tmp_path):
    shape = np.zeros((80, 100), np.uint8, order="F")
    shape[20:35, 10:40] = 1
    runs = mask.encode(shape)
    if kind == "numbers":
        ends = np.flatnonzero(np.diff(np.concatenate([[0], shape.flatten("F"), [0]]))).tolist()
        counts = np.diff([0, *ends, 8000]).tolist()
        told = {"size": [80, 100], "counts": counts}
    else:
        told = {"size": [80, 100], "counts": runs["counts"].decode()}
    if kind == "polygon":
        told = [[10, 20, 40, 20, 40, 35], [12, 22, 12, 30]]
    for part in ("train", "valid"):
        coco(tmp_path / part, "_annotations.coco.json", bbox=None, segmentation=told, iscrowd=int(kind == "letters"))
    (thing,) = load(str(tmp_path)).train[0].annotations
    assert thing.box == pytest.approx(CORNERS) and thing.crowd == (kind == "letters")


def odd_pictures(root):
    """A COCO set of pictures that other tools read otherwise, and of some that cannot be used."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 255, (80, 100, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    made = {
        "turned one.jpg": lambda p: rgb.save(p, exif=exif, quality=100, subsampling=0), "cmyk.jpg": lambda p: rgb.convert("CMYK").save(p),
        "deep.png": lambda p: Image.fromarray(rng.integers(0, 65535, (80, 100), dtype=np.uint16)).save(p),
        "palette.PNG": lambda p: rgb.convert("P").save(p), "plain.JPG": lambda p: rgb.save(p),
        "alpha.png": lambda p: rgb.convert("RGBA").save(p), "broken.jpg": lambda p: p.write_bytes(b"no picture"),
        "small.png": lambda p: rgb.resize((50, 40)).save(p),
    }  # fmt: skip
    for part in ("train", "valid"):
        (root / part).mkdir(parents=True)
        for name, save in made.items():
            save(root / part / name)
        images = [{"id": i, "file_name": name, "width": 100, "height": 80} for i, name in enumerate(made)]
        entries = [{"id": i, "image_id": i, "category_id": 1, "bbox": [10, 20, 30, 15]} for i in range(len(made))]
        entries.append({"id": 99, "image_id": 4, "category_id": 1, "bbox": [90, 20, 30, 15]})
        content = {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "cat"}]}
        (root / part / "_annotations.coco.json").write_text(json.dumps(content))
    return rgb


def test_fix_writes_what_check_finds_no_error_in(tmp_path, capsys):
    rgb = odd_pictures(tmp_path / "odd")
    before = {p: p.read_bytes() for p in (tmp_path / "odd").rglob("*") if p.is_file()}
    assert commands.main(SESSION, "check", [str(tmp_path / "odd"), "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["errors"] == 2 * 3  # broken, small, one box outside
    turned = next(p for p in load(str(tmp_path / "odd"), strict=False).train if p.name.startswith("turned"))
    assert turned.open().size == (100, 80) and sum(p["kind"] == "turned" for p in told["sets"][0]["problems"]) == 2
    assert commands.main(SESSION, "check", [str(tmp_path / "odd"), "--fix", str(tmp_path / "clean")]) == 0
    assert commands.main(SESSION, "check", [str(tmp_path / "clean"), "--json"]) == 0
    data = load(str(tmp_path / "clean"))
    assert sorted(p.name for p in data.train) == ["alpha.png", "cmyk.png", "deep.png", "palette.png", "plain.jpg", "turned one.png"]  # fmt: skip
    for record in data.train:
        with Image.open(record.path) as image:
            assert image.mode in ("RGB", "L") and image.size == (100, 80) and not image.getexif()
        assert [a.box for a in record.annotations] == [CORNERS]
    turned = next(p for p in data.train if p.name.startswith("turned"))  # its boxes were drawn on the unturned picture
    assert np.abs(np.asarray(turned.open(), int) - np.asarray(rgb, int)).mean() < 12
    assert {p: p.read_bytes() for p in before} == before
    with pytest.raises(UserError, match="exists already"):
        SESSION.fix(str(tmp_path / "odd"), str(tmp_path / "clean"))


def test_run_lengths_are_read_as_pycocotools_reads_them():
    generator = np.random.default_rng(0)
    for _ in range(30):
        shape = tuple(generator.integers(1, 40, 2))
        inside = np.asfortranarray(generator.random(shape) < generator.random(), np.uint8)
        packed = mask.encode(inside)
        ends = np.flatnonzero(np.diff(np.concatenate([[0], inside.ravel("F"), [2]])))
        for counts in (packed["counts"].decode(), np.diff([0, *ends]).tolist()):
            runs = Runs(shape, counts)
            assert np.array_equal(runs.mask(), inside.astype(bool))
            left, top, width, height = mask.toBbox(packed).tolist()
            assert runs.box() == ((left, top, left + width, top + height) if inside.any() else None)


@pytest.mark.parametrize(
    "counts", [[], [1], [10**9, 5], [3, 100], "", "zzz\x7f~", "o" * 100_000, "ü", "0" * 5, [5, 5, 5]]
)
def test_run_lengths_that_do_not_fill_their_size_are_no_mask(counts):
    runs = Runs((4, 5), counts)
    assert runs.runs() is None and runs.box() is None and runs.area() == 0
    with pytest.raises(UserError, match="do not fill"):
        runs.mask()
