import sys
import types

import numpy as np
import pytest
import torch
from colours import image_set, picture, save_folders
from ks_classification.data import images as data
from ks_classification.data import transforms
from PIL import Image
from torchvision.transforms import v2
from vit_files import one_line

from common import notes
from common.errors import UserError


def test_class_folders_are_read_in_the_order_of_their_names(tmp_path):
    images = data.load(save_folders(tmp_path, ["red", "blue"], train=3, test=2))
    assert images.classes == ["blue", "red"] and images.rows == {}
    assert [i.label for i in images.train] == ["blue"] * 3 + ["red"] * 3 and len(images.test) == 4
    assert images.train[0].name.endswith("train/blue/0.png")
    np.testing.assert_array_equal(np.asarray(images.train[0].open()), picture("blue", 0))


@pytest.mark.parametrize("name", ["val", "validation"])
def test_the_test_images_may_lie_in_a_folder_of_another_name(tmp_path, name):
    save_folders(tmp_path, ["red"])
    (tmp_path / "test").rename(tmp_path / name)
    assert len(data.load(str(tmp_path)).test) == 3


@pytest.mark.parametrize("pair", [("Train", "Test"), ("training", "testing"), ("TRAIN", "Valid")])
def test_parts_have_their_usual_names_in_any_case_and_litter_is_no_data(tmp_path, pair):
    root = tmp_path / "unpacked" / "set"
    save_folders(root, ["red", "blue"])
    for part, name in zip(("train", "test"), pair, strict=True):
        (root / part / "__MACOSX").mkdir()
        for file in ("Thumbs.db", "desktop.ini", ".DS_Store", "._0.png"):
            (root / part / "red" / file).write_bytes(b"x")
        (root / part).rename(root / name)
    images = data.load(str(tmp_path / "unpacked"))  # the only folder in it counts
    assert images.classes == ["blue", "red"] and (len(images.train), len(images.test)) == (12, 6)


def test_a_part_that_is_not_used_is_named(tmp_path, capsys):
    save_folders(tmp_path, ["red"])
    (tmp_path / "Valid" / "red").mkdir(parents=True)
    data.load(str(tmp_path))
    notes.tell(True)
    assert "Valid/ is not used: test/ tests" in capsys.readouterr().err


def test_class_folders_without_a_split_give_each_class_test_images(tmp_path, capsys):
    root = tmp_path / "two classes"
    for name in ("red rose", "tulip"):
        (root / name).mkdir(parents=True)
        for i in range(7):
            Image.fromarray(picture("red", i)).save(root / name / f"{i}.png")
    images = data.load(str(root))
    assert [i.name[-5:] for i in images.test] == ["1.png", "6.png"] * 2 and len(images.train) == 10
    assert capsys.readouterr().err == ""  # told once a command gets to work
    notes.tell(True)
    assert "every fifth image of each class tests" in capsys.readouterr().err
    for i in range(6):
        (root / "tulip" / f"{i}.png").unlink()
    with pytest.raises(UserError, match="tulip holds one image"):
        data.load(str(root))


def test_published_folder_names_state_logit_rows(tmp_path):
    ids = {"red": "17?n01532829", "blue": "3?n02110063", "green": "100_n01440764"}
    images = data.load(save_folders(tmp_path, ["red", "blue", "green"], folder=ids.get))
    assert images.rows == {"n02110063": 3, "n01532829": 17, "n01440764": 100}
    assert images.classes == ["n02110063", "n01532829", "n01440764"], "in the order of their rows"


def test_identities_of_faces_keep_their_numbers_as_names(tmp_path):
    ids = {"red": "138", "blue": "1005", "green": "819"}
    images = data.load(save_folders(tmp_path, ["red", "blue", "green"], folder=ids.get))
    assert images.classes == ["1005", "138", "819"], "as text, like torchvision's ImageFolder"


def test_several_sources_are_joined(tmp_path):
    first, second = save_folders(tmp_path / "a", ["red"]), save_folders(tmp_path / "b", ["red", "blue"])
    images = data.load(f"{first}, {second}")
    assert images.classes == ["red", "blue"] and len(images.train) == 6 + 12


def test_digits_are_split_the_same_way_each_time_and_stratified():
    one, two = data.load("digits"), data.load("digits")
    assert [i.name for i in one.train] == [i.name for i in two.train] and len(one.train) + len(one.test) == 1797
    counts = [sum(i.label == c for i in one.test) for c in one.classes]
    assert max(counts) - min(counts) <= 3 and not {i.name for i in one.train} & {i.name for i in one.test}


@pytest.mark.parametrize(
    "break_it, word",
    [
        (lambda root: (root / "train" / "empty").mkdir(), "empty is empty"),
        (lambda root: (root / "train").rename(root / "other"), "there is no folder"),
        (lambda root: [p.rename(root / p.name) for p in (root / "test").iterdir()], "test is empty"),
    ],
)
def test_folders_that_lack_something_are_named(tmp_path, break_it, word):
    save_folders(tmp_path, ["red", "blue"])
    break_it(tmp_path)
    with pytest.raises(UserError, match=word) as error:
        data.load(str(tmp_path))
    one_line(error)


def test_an_unknown_source_says_what_there_is():
    with pytest.raises(UserError, match="there is no folder nowhere; name a folder"):
        data.load("nowhere")


def damaged(root):
    """A truncated JPEG, a text file and an empty file among good images."""
    save_folders(root, ["red", "blue"])
    Image.fromarray(picture("red", 7, 64)).save(root / "full.jpg")
    whole = (root / "full.jpg").read_bytes()
    (root / "train" / "red" / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "train" / "red" / "notes.txt").write_text("not an image")
    (root / "train" / "blue" / "nothing.png").write_bytes(b"")
    return data.load(str(root))


def test_unreadable_files_are_named_all_at_once(tmp_path):
    images = damaged(tmp_path)
    with pytest.raises(UserError) as error:
        data.decode(images.train, np.asarray, False, "")
    text = one_line(error) if len(str(error.value)) < 400 else str(error.value)
    assert all(name in text for name in ("3 file(s)", "half.jpg", "notes.txt", "nothing.png", "--skip-corrupt"))


def test_unreadable_files_can_be_left_out(tmp_path):
    images = damaged(tmp_path)
    good, arrays, bad = data.decode(images.train, np.asarray, True, "")
    assert len(good) == len(arrays) == 12 and sorted(b.rpartition("/")[2] for b in bad) == ["half.jpg", "notes.txt", "nothing.png"]  # fmt: skip
    for k, array in zip(good, arrays, strict=True):
        np.testing.assert_array_equal(array, np.asarray(images.train[k].open()))


def test_a_bar_stays_out_of_log_files(capsys):
    images = image_set(["red"], train=2100)
    data.decode(images.train, lambda image: None, False, "reading")
    assert capsys.readouterr() == ("", "")


def test_grey_and_transparent_images_become_rgb(tmp_path):
    Image.new("L", (4, 4), 128).save(tmp_path / "grey.png")
    Image.new("RGBA", (4, 4), (1, 2, 3, 0)).save(tmp_path / "clear.png")
    for name in ("grey.png", "clear.png"):
        assert data.Item(name, "", str(tmp_path / name)).open().mode == "RGB"


class FakeCifar:
    """As torchvision's CIFAR classes: the attributes that we read."""

    base_folder = "cifar-10-batches-py"
    classes = ["cat", "dog"]

    def __init__(self, root, train, download):
        if not download and root == "broken":
            raise RuntimeError("Dataset not found or corrupted.")
        self.train, self.targets = train, [0, 1, 1] if train else [1, 0]
        self.data = np.zeros((len(self.targets), 32, 32, 3), np.uint8)


def test_cifar_is_read_through_torchvision(monkeypatch):
    import torchvision

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeCifar)
    images = data.load("cifar10", "somewhere")
    assert images.classes == ["cat", "dog"] and [i.label for i in images.train] == ["cat", "dog", "dog"]
    assert len({i.name for i in images.train + images.test}) == 5


def test_cifar_that_cannot_be_had_is_one_line(monkeypatch):
    import torchvision

    def refuse(*args, **options):
        raise OSError("<urlopen error>\nname resolution")

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", type("Refusing", (), {"base_folder": "x", "__new__": refuse}))
    with pytest.raises(UserError, match="cifar100 is not in data and could not be downloaded"):
        data.load("cifar100")


def hugging(monkeypatch, columns, splits):
    """A stand-in for the datasets package, whose real one is optional."""

    class Kind:
        def __init__(self, **settings):
            self.__dict__.update(settings)

    class Split(list):
        features = columns

        def cast_column(self, name, kind):
            assert kind.decode is False
            return self

        def __getitem__(self, key):
            return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)

    module = types.ModuleType("datasets")
    module.Image, module.ClassLabel = type("Image", (Kind,), {}), type("ClassLabel", (Kind,), {})
    module.load_from_disk = module.load_dataset = lambda name: {k: Split(rows) for k, rows in splits.items()}
    monkeypatch.setitem(sys.modules, "datasets", module)
    columns.update({k: getattr(module, v[0])(**v[1]) for k, v in columns.items() if isinstance(v, tuple)})


def test_hugging_face_data_has_its_image_and_label_columns_found(monkeypatch, tmp_path):
    Image.fromarray(picture("red", 0)).save(tmp_path / "a.png")
    rows = [{"img": {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}, "fine": 1},
            {"img": {"bytes": None, "path": str(tmp_path / "a.png")}, "fine": 0}]  # fmt: skip
    columns = {"img": ("Image", {}), "fine": ("ClassLabel", {"names": ["cat", "dog"]}), "id": object()}
    hugging(monkeypatch, columns, {"train": rows, "validation": rows[:1]})
    images = data.load("hf:somebody/pets")
    assert images.classes == ["cat", "dog"] and [i.label for i in images.train] == ["dog", "cat"]
    for item in images.train:
        np.testing.assert_array_equal(np.asarray(item.open()), picture("red", 0))


@pytest.mark.parametrize(
    "columns, splits, word",
    [
        ({"img": ("Image", {})}, {"train": [], "test": []}, "needs an Image and a ClassLabel column"),
        ({}, {"train": []}, "train and test .* are needed"),
    ],
)
def test_hugging_face_data_without_what_is_needed_is_an_error(monkeypatch, columns, splits, word):
    hugging(monkeypatch, dict(columns), splits)
    with pytest.raises(UserError, match=word):
        data.load("hf:somebody/other")


def test_hugging_face_without_the_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        data.load("hf:somebody/pets")


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 31), (300, 300)])
def test_views_made_together_are_those_of_torchvision(height, width):
    pixels = torch.randint(
        0, 256, (20, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    images, seeds = list(pixels.permute(0, 3, 1, 2)), [3**k for k in range(20)]
    state = torch.get_rng_state()
    found = transforms.train_views(images, seeds, 16, True, 0.5)
    assert torch.equal(torch.get_rng_state(), state)
    plain = [v2.RandomResizedCrop(16, scale=(0.5, 1.0), ratio=transforms.RATIO), v2.RandomHorizontalFlip()]
    for image, seed, view in zip(images, seeds, found, strict=True):
        torch.manual_seed(seed)
        assert torch.equal(view, v2.Compose(plain)(image))
    centre = v2.Compose([v2.Resize(16), v2.CenterCrop(16)])
    assert all(torch.equal(a, centre(b)) for a, b in zip(transforms.test_views(images, 16), images, strict=True))
