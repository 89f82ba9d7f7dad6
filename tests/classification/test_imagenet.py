"""Rows of ImageNet classifiers named by folders, and bases whose rows are named wrongly."""

from types import SimpleNamespace

import pytest
import torch
from colours import save_folders, spec
from ks_classification import chance
from ks_classification.data import imagenet
from ks_classification.data import images as data
from ks_classification.data.images import ImageSet
from ks_classification.models import build
from ks_classification.session import SESSION
from ks_classification.source import SourceConfig, base_model, name_rows
from vit_files import one_line, tiny_timm

from common import commands
from common.errors import UserError
from common.plan import make_plan
from common.record import METRICS, read_lines
from common.settings import settings_from
from common.train_config import TrainConfig

ROWS = {"n01440764": 0, "n02102040": 217, "n03028079": 497, "n03445777": 574}
KNOWN = ["red", "green", "blue", "black"]
FOLDERS = dict(zip(KNOWN, ROWS, strict=True)) | {"white": "king_of_hearts"}
HERE = ["--precision", "fp32", "--device", "cpu", "--threads", "1", "--gallery", "0", "--no-report"]
QUICK = ["--steps", "1", "--batch-size", "4", "--lora-rank", "2", *HERE]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Colours in folders called as in Imagenette, and two files that know four of them: of 4 rows, and of ImageNet's 1000."""
    root = tmp_path_factory.mktemp("imagenet")
    colours = save_folders(root / "colours", KNOWN)
    save_folders(root / "data", list(FOLDERS), folder=FOLDERS.get)
    model = ["--model", "vit_tiny_patch16_224", "--img-size", "16", "--patch-size", "8"]
    model += ["--model-args", "embed_dim=32,depth=2,num_heads=2", "--classes", ",".join(KNOWN)]
    steps = ["--epochs", "8", "--batch-size", "8", "--lr", "3e-3", "--output-dir", str(root / "base")]
    assert commands.main(SESSION, "pretrain", ["--data", colours, *model, *HERE, *steps]) == 0
    state = build.load_folder(root / "base" / "model")[0].state_dict()
    torch.save(state, root / "four.pth")
    weight, bias = torch.zeros(1000, 32), torch.full((1000,), -100.0)
    rows = list(ROWS.values())
    weight[rows], bias[rows] = state["head.weight"], state["head.bias"]
    torch.save(state | {"head.weight": weight, "head.bias": bias}, root / "imagenet.pth")
    return root


def source(place, **flags):
    checkpoint = str(place / "imagenet.pth")
    return SourceConfig(data=str(place / "data"), checkpoint=checkpoint, model_args="num_heads=2", **flags)


def opened(place, **flags):
    values = {"data": str(place / "data"), "checkpoint": str(place / "imagenet.pth"), "model_args": "num_heads=2"}
    values |= {"lora_rank": 2, "forget": "n02102040"} | flags
    return SESSION.open_swap(settings_from(SESSION.run_kinds("swap"), values))


def swapped(place, out, file, *more):
    flags = ["--checkpoint", str(place / file), "--model-args", "num_heads=2", *QUICK, "--output-dir", str(out)]
    return commands.main(SESSION, "swap", [*flags, *more])


# ---- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, row",
    [("n02102040", 217), ("tench", 0), ("Tinca tinca", 0), ("English_springer", 217), ("english-springer", 217),
     ("ENGLISH SPRINGER SPANIEL", 217), ("golf-ball", 574), ("jack-o'-lantern", 607), ("crayfish", 124)],
)  # fmt: skip
def test_folders_called_by_wordnet_id_or_name_are_their_rows(name, row):
    names = imagenet.row_names(1000, [name])
    assert names[row] == name and len(set(names)) == 1000
    assert all(other.startswith("n") and len(other) == 9 for i, other in enumerate(names) if i != row)


def test_larger_imagenets_have_rows_of_their_own():
    for rows in (11221, 11821, 21841, 21842, 21843):
        names = imagenet.row_names(rows, ["n02102040"])
        assert len(set(names)) == rows
        assert (names.index("n02102040") == 217) == (rows == 21842), "whose first thousand are those of the 1000"
    assert imagenet.row_names(999, ["n02102040"]) is None


def test_names_for_several_rows_and_rows_of_several_names_are_one_line():
    with pytest.raises(UserError, match="'crane' may be any of the ImageNet classes n02012849 and n03126707") as error:
        imagenet.row_names(1000, ["tench", "crane"])
    one_line(error)
    with pytest.raises(UserError, match="'tench' and 'n01440764' are both ImageNet's n01440764") as error:
        imagenet.row_names(1000, ["tench", "n01440764"])
    one_line(error)


def test_a_folder_that_is_no_imagenet_class_is_new_and_takes_no_row(place, capsys):
    opening = opened(place, learn="king_of_hearts")
    assert opening.plan.groups["learn"] == ("king_of_hearts",) and set(opening.plan.groups["retain"]) < set(ROWS)
    assert capsys.readouterr().err == "no ImageNet class, so new to the model: king_of_hearts\n"
    names = opening.domain().classes.names
    assert {name: names.index(name) for name in ROWS} == ROWS and len(names) == 1001
    assert names[1000] == "king_of_hearts"


def test_flags_may_name_folders_by_what_imagenet_calls_them(place):
    plan = opened(place, learn="King of Hearts", forget="English springer,Tinca tinca", retain="golf ball").plan
    assert plan.groups["learn"] == ("king_of_hearts",) and plan.groups["retain"] == ("n03445777",)
    assert plan.groups["forget"] == ("n02102040", "n01440764")
    with pytest.raises(UserError, match="--forget: unknown class 'unicorn'"):
        opened(place, learn="king_of_hearts", forget="unicorn")


def test_a_name_of_several_classes_here_is_refused():
    assert imagenet.as_called("crane", ["n02012849", "tench"]) == ["n02012849"]
    assert imagenet.as_called("1,tench", ["n02012849", "tench"]) == ["1", "tench"]
    with pytest.raises(UserError, match="'crane' may be any of n02012849, n03126707; name one") as error:
        imagenet.as_called("crane", ["n02012849", "n03126707"])
    one_line(error)


def test_a_known_class_among_the_images_to_learn_is_refused(place, tmp_path):
    learn = save_folders(tmp_path, ["white"], folder=lambda _: "n02979186")
    with pytest.raises(UserError, match="knows class 'n02979186' already"):
        opened(place, learn_data=learn, learn="n02979186")


def test_fewer_classes_than_rows_without_a_name_are_refused(place):
    for rows, classes in ((1000, ["a", "b"]), (7, ["n02102040", "b"]), (2, ["a", "b", "c"])):
        with pytest.raises(UserError, match="--class-names @file, or call the folders <row>_") as error:
            name_rows(rows, SourceConfig(data="photos"), ImageSet(classes, [], []))
        one_line(error)


def test_as_many_classes_as_rows_are_in_the_rows_order_unless_they_are_imagenets():
    letters = [f"class{i:03d}" for i in range(1000)]
    for classes in (letters, [*letters[:-1], "tench"], ["a", "b"]):
        assert name_rows(len(classes), SourceConfig(), ImageSet(classes, [], [])) == classes
    ids = imagenet.row_names(1000, ["n01440764"])
    assert name_rows(1000, SourceConfig(), ImageSet(ids[::-1], [], [])) == ids


def test_a_narrow_head_keeps_the_imagenet_rows_of_the_data(place):
    config = source(place, narrow_head=True)
    model, found = base_model(config, data.load(config.data))
    whole = torch.load(place / "imagenet.pth", weights_only=True)
    assert found.classes == list(ROWS) and torch.equal(model.head.weight, whole["head.weight"][list(ROWS.values())])


def test_fetched_weights_have_the_same_names(monkeypatch):
    import timm

    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, num_classes, **args: tiny_timm(num_classes))
    config = SourceConfig(model="vit_tiny_patch16_224", pretrained=True)
    names = base_model(config, ImageSet(["english_springer", "tench"], [], []))[1].classes
    assert (names[0], names[1], names[217]) == ("tench", "n01443537", "english_springer")


def test_an_imagenet_model_is_swapped_as_it_comes(place, tmp_path):
    flags = ["--data", str(place / "data"), "--learn", "king_of_hearts", "--forget", "n02102040"]
    assert swapped(place, tmp_path, "imagenet.pth", *flags) == 0
    before = {
        line["group"]: line["score"]
        for line in read_lines(tmp_path / METRICS)
        if line.get("phase") == 0 and "group" in line
    }
    assert before == {"learn": 0, "forget": 100, "retain": 100}


# ---- a base that is at chance --------------------------------------------------------------------------------


def test_rows_that_are_named_wrongly_stop_a_swap_before_it_writes(place, tmp_path, capsys):
    flags = ["--data", str(place / "colours"), "--order", "forget", "--forget", "red"]
    wrong = [*flags, "--class-names", "black,red,green,blue"]
    capsys.readouterr()
    assert swapped(place, tmp_path / "out", "four.pth", *wrong) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: the base model names 0 of 12 test images of its 4 known classes rightly")
    assert err.count("\n") == 1 and "--class-names" in err and "--allow-chance" in err
    assert not (tmp_path / "out").exists()
    assert swapped(place, tmp_path / "out", "four.pth", *wrong, "--allow-chance") == 0
    assert swapped(place, tmp_path / "right", "four.pth", *flags, "--class-names", ",".join(KNOWN)) == 0


def refused(right, count, known, monkeypatch, learn=1):
    names = [f"c{i}" for i in range(known)]
    new = [f"new{i}" for i in range(learn)]
    plan = make_plan("fltf", new, names[:1], names[1:]) if known > 1 else make_plan("learn", new, names, [])
    answers = [True] * right + [False] * (count - right)
    monkeypatch.setattr(chance, "right_answers", lambda *args: [answers])
    rows = SimpleNamespace(rows=list)
    try:
        chance.refuse_chance(SimpleNamespace(spec=spec(names), classes=rows), plan, None)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "right, count, known, stops",
    [(3, 3, 10, False), (0, 3, 10, True), (18, 100, 10, True), (19, 100, 10, False), (62, 100, 2, True),
     (63, 100, 2, False), (6, 6, 2, False), (0, 6, 2, False), (6, 7, 2, True), (7, 7, 2, False), (0, 9, 1, False)],
)  # fmt: skip
def test_the_rule_is_a_binomial_test_at_one_percent(right, count, known, stops, monkeypatch):
    assert bool(refused(right, count, known, monkeypatch)) == stops


def test_classes_to_be_learned_are_not_asked_for(monkeypatch):
    assert "of its 3 known classes" in refused(0, 30, 3, monkeypatch, learn=4)


def test_an_even_sample_of_the_test_images_is_asked(place, monkeypatch):
    domain = opened(place, learn="king_of_hearts", eval_batch=5).domain()
    train = TrainConfig(device="cpu", precision="fp32")
    rows = list(ROWS.values())

    def right_answers(*given):
        return [answer for part in chance.right_answers(*given) for answer in part]

    assert right_answers(domain, rows, train) == [True] * 12
    monkeypatch.setattr(chance, "IMAGES", 8)
    assert right_answers(domain, rows, train) == [True] * 8
    monkeypatch.setattr(chance, "IMAGES", 2)
    assert right_answers(domain, rows, train) == [True] * 2
    assert right_answers(domain, [rows[0], 5], train) == [True], "row 5 has no test image"


def test_wordnet_ids_have_titles_where_imagenet_names_them():
    found = imagenet.titles(["red", "n02102040", "n00007846", "n99999999"])
    assert found == {"n02102040": "English springer", "n00007846": "person"}
    assert imagenet.titles(["red"]) == {}
