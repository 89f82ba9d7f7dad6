import pytest
import torch
from colours import image_set, save_folders
from ks_classification import load_checkpoint, source
from ks_classification.data import images as data
from ks_classification.data.images import ImageSet
from ks_classification.models import build, layers
from ks_classification.models.face import FaceTransformer
from ks_classification.session import SESSION
from ks_classification.source import SourceConfig, base_model
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT
from vit_files import one_line, same, tiny_bird, tiny_timm

from common import adapters, lora
from common.errors import UserError
from common.settings import settings_from

NOTHING = ImageSet([], [], [])


def tiny_face(head="cosface", classes=3):
    torch.manual_seed(0)
    return FaceTransformer(classes, head, depth=1, width=64, num_heads=1, hidden=32, image_size=24)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Published files of every kind, by name."""
    root = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    vision = TorchvisionViT(32, 16, 1, 1, 64, 64, num_classes=4)
    states = {
        "bird": tiny_bird(7, rank=2), "timm": tiny_timm(7).state_dict(), "torchvision": vision.state_dict(),
        "face": tiny_face().state_dict(), "softmax": tiny_face("softmax").state_dict(),
        "embeddings": tiny_face(classes=0).state_dict(), "other": {"conv1.weight": torch.zeros(8, 3, 7, 7)},
        "named": {"state_dict": tiny_bird(2), "classes": ["cat", "dog"]},
    }  # fmt: skip
    for name, state in states.items():
        torch.save(state, root / f"{name}.pth")
    return {name: str(root / f"{name}.pth") for name in states}


def swap_opened(**flags):
    return SESSION.open_swap(settings_from(SESSION.run_kinds("swap"), flags))


def opened(files, name, images=NOTHING, **flags):
    return base_model(SourceConfig(checkpoint=files[name], **flags), images)


@pytest.mark.parametrize(
    "name, kind, mean, size, rows",
    [("bird", "timm", 0.5, 32, 7), ("timm", "timm", 0.5, 32, 7), ("torchvision", "torchvision", 0.485, 32, 4),
     ("face", "face", 0.0, 24, 3), ("softmax", "face", 0.0, 24, 3)],
)  # fmt: skip
def test_a_published_file_brings_its_architecture_pixels_and_rows(files, tmp_path, name, kind, mean, size, rows):
    model, spec = opened(files, name)
    assert (spec.name, spec.mean[0], spec.size, len(spec.classes)) == (f"published/{kind}", mean, size, rows)
    assert not lora.adapters(model), "an adapter in the file is merged"
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        expected = layers.forward(load_checkpoint(files[name]).eval(), images)[0]
        same(layers.forward(model, images)[0], expected)
    like = build.build(spec)
    assert {k: v.shape for k, v in like.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    adapters.save_model(model, tmp_path, {"classes": spec.classes})
    build.save_folder(tmp_path, spec)
    with torch.no_grad():
        same(layers.forward(build.load_folder(tmp_path)[0].eval(), images)[0], expected)


def test_a_model_like_a_published_one_starts_at_random(files):
    model, spec = opened(files, "timm")
    fresh = build.build(spec)
    assert fresh.blocks[0].mlp.fc1.weight.std() < 0.1 and not torch.equal(fresh.pos_embed, model.pos_embed)


def test_flags_overrule_what_the_file_suggests(files):
    assert opened(files, "bird", normalize="imagenet")[1].mean == [0.485, 0.456, 0.406]
    model, spec = opened(files, "bird", img_size=64)
    assert spec.size == 64 and layers.forward(model, torch.rand(1, 3, 64, 64))[0].shape == (1, 7)
    assert type(opened(files, "face", face_head="arcface")[0].head).__name__ == "ArcFace"


def test_merged_files_are_taken_as_such(files):
    alone, merged = opened(files, "bird")[0], opened(files, "bird", lora_merged=True)[0]
    plain = load_checkpoint(files["bird"])
    adapters.remove(plain)
    same(merged.blocks[0].mlp.fc1.weight, plain.blocks[0].mlp.fc1.weight)
    assert not torch.equal(alone.blocks[0].mlp.fc1.weight, merged.blocks[0].mlp.fc1.weight)


def test_rows_are_named_by_file_flag_folder_or_number(files, tmp_path):
    assert opened(files, "named")[1].classes == ["cat", "dog"]
    assert opened(files, "named", class_names="a,b")[1].classes == ["a", "b"]
    assert opened(files, "bird", class_names="a,b")[1].classes == ["a", "b", *(f"row_{i}" for i in range(2, 7))]
    seven = ImageSet(list("gfedcba"), [], [])
    assert opened(files, "bird", seven)[1].classes == seven.classes, "as many as there are rows, in their order"
    assert opened(files, "bird")[1].classes[6] == "row_6"
    (tmp_path / "names.txt").write_text("a\nb # a comment\n")
    assert opened(files, "bird", class_names=f"@{tmp_path / 'names.txt'}")[1].classes[:2] == ["a", "b"]


def test_published_folders_name_the_rows_that_they_state(files, tmp_path):
    ids = {"red": "5?n01532829", "blue": "2?n02110063"}
    root = save_folders(tmp_path, ["red", "blue"], folder=ids.get)
    names = opened(files, "bird", data.load(root))[1].classes
    assert names == ["row_0", "row_1", "n02110063", "row_3", "row_4", "n01532829", "row_6"]
    with pytest.raises(UserError, match="states logit row 5, but the checkpoint has 2"):
        source.name_rows(2, SourceConfig(data=root), data.load(root))


def test_a_narrow_head_keeps_the_rows_of_the_data(files):
    whole, _ = opened(files, "bird", class_names="a,red,b,blue,c,d,e")
    model, spec = opened(files, "bird", image_set(["blue", "red"]), class_names="a,red,b,blue,c,d,e", narrow_head=True)
    assert spec.classes == ["red", "blue"]
    assert torch.equal(model.head.weight, whole.head.weight[[1, 3]]) and torch.equal(
        model.head.bias, whole.head.bias[[1, 3]]
    )
    with pytest.raises(UserError, match="--narrow-head"):
        opened(files, "bird", image_set(["green"]), class_names="a,b", narrow_head=True)


def test_weights_fetched_by_name_keep_their_rows(monkeypatch):
    import timm

    made = []

    def create(name, pretrained, num_classes, **args):
        made.append((name, pretrained, num_classes))
        return tiny_timm(num_classes)

    monkeypatch.setattr(timm, "create_model", create)
    _, spec = base_model(SourceConfig(model="vit_tiny_patch16_224", pretrained=True, class_names="tench"), NOTHING)
    assert made == [("vit_tiny_patch16_224", True, 1000)] and len(spec.classes) == 1000 and spec.classes[0] == "tench"


@pytest.mark.parametrize(
    "name, flags, word",
    [
        ("embeddings", {}, "holds no classifier, only embeddings"),
        ("other", {}, "unknown architecture"),
        ("face", {"img_size": 32}, "resizes timm models only"),
        ("bird", {"model_args": "depth=3"}, "can only be num_heads"),
        ("bird", {"class_names": "a,b,c,d,e,f,g,h"}, "8 names, but the checkpoint has 7"),
    ],
)
def test_files_that_do_not_serve_are_one_line(files, name, flags, word):
    with pytest.raises(UserError, match=word) as error:
        opened(files, name, **flags)
    one_line(error)


@pytest.mark.parametrize(
    "flags, word",
    [
        ({}, "starts from a pretrained model"),
        ({"checkpoint": "nowhere.pth"}, "nowhere.pth"),
        ({"pretrained": True}, "which model"),
        ({"model": "face_p8s8", "pretrained": True}, "nobody publishes"),
        ({"model": "vit_tiny_patch16_224", "face_head": "cosface", "pretrained": True}, "--face-head"),
    ],
)
def test_sources_that_lack_something_are_one_line(flags, word):
    with pytest.raises(UserError, match=word) as error:
        base_model(SourceConfig(**flags), NOTHING)
    one_line(error)


def test_a_data_set_with_more_classes_than_rows_needs_names(files):
    with pytest.raises(UserError, match="--class-names"):
        source.name_rows(2, SourceConfig(data="colours"), image_set())


def test_a_swap_is_checked_before_its_images_are_read(files, tmp_path, monkeypatch):
    root = save_folders(tmp_path, ["red", "blue", "white"])
    flags = {"checkpoint": files["bird"], "data": root, "class_names": "red,blue", "learn": "white", "forget": "red"}
    with monkeypatch.context() as patch:
        patch.setattr(data.Item, "open", None)
        opening = swap_opened(**flags, lora_rank=4)
        assert opening.plan.groups == {"learn": ("white",), "forget": ("red",), "retain": ("blue",)}
        with pytest.raises(UserError, match="--lora-rank"):
            swap_opened(**flags, lora_rank=999)
        with pytest.raises(UserError, match="--order"):
            swap_opened(data="nowhere", order="xyz")
        with pytest.raises(UserError, match="what shall change"):
            swap_opened(data="nowhere")
    assert not lora.adapters(opening.domain().build_model()), "the trial leaves no adapter behind"


@pytest.mark.parametrize(
    "name, word", [("nothing", "is no run"), ("begun", "has no result yet"), ("bare", "not the record")]
)
def test_folders_without_a_result_are_one_line(tmp_path, name, word):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text(
        '{"flags": {}, "identity": {"plan": {"name": "p", "groups": {"forget": ["0"], "retain": ["1"]},'
        ' "steps": [["forget", ["forget"]]], "keep_until_forgotten": true}}}'
    )
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text('{"flags": {}}')
    with pytest.raises(UserError, match=word) as error:
        SESSION.load(tmp_path / name, {})
    one_line(error)


@pytest.mark.parametrize("name, value", [("dropout", 1.0), ("img_size", -1), ("head_rows", -1)])
def test_flags_out_of_range_are_errors(name, value):
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')}"):
        SourceConfig(**{name: value})
