"""Classifiers of transformers: rows, adapters, a swap, and what others read of it."""

import pytest
import tiny_hub
import torch
from alone import Alone
from ks_classification.models import hub as hub_models
from ks_classification.models import layers
from ks_classification.session import SESSION
from safetensors.torch import load_file

from common import adapters, commands, hub, lora

NAMES = [*map(str, range(8))]
KINDS = list(tiny_hub.CLASSIFIERS)
SWAP = ["--data", "digits", "--no-flip", "--learn", "8", "--forget", "1", "--retain", "0,2", "--allow-chance"]
FAST = ["--steps", "2", "--batch-size", "4", "--threads", "1", "--device", "cpu", "--gallery", "0", "--lora-rank", "2",
        "--lora-position", "all"]  # fmt: skip


def run(verb, *words):
    assert commands.main(SESSION, verb, [str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind; towers have their head beside them, CLIP a tokenizer."""
    place = tmp_path_factory.mktemp("hub")
    for kind, sizes in tiny_hub.CLASSIFIERS.items():
        wrapper = hub_models.KINDS.get(kind, hub_models.HubClassifier)
        folder = tiny_hub.save(kind, wrapper.network_class(kind), sizes, NAMES, place / kind, side=16)
        if kind == "clip":
            (folder / "tokenizer.json").write_bytes(tiny_hub.tokenizer())
        if kind == "dinov3_vit":
            model, _ = hub_models.load(folder, bare=True)
            torch.manual_seed(0)
            layers.widen(model, len(NAMES)).save(folder, NAMES)
    return place


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    process = Alone(tmp_path_factory.mktemp("alone"))
    yield process
    process.close()


def opened(folder):
    """The model of a folder with a row per name."""
    model, names = hub_models.load(folder)
    return (model, names) if names else (layers.widen(model, len(NAMES), names=NAMES), NAMES)


def test_a_folder_is_scored_as_a_base_is_named(folders, capsys):
    for name in (f"hf:{folders / 'dinov2'}", folders / "dinov2"):
        run("evaluate", name, "--data", "digits", "--no-per-class")
    one, two = capsys.readouterr().out.split("top-1 accuracy (%)")[1:]
    assert one == two


def images(seed=0):
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_old_rows_answer_as_before_and_the_embedding_makes_the_logits(folders, kind):
    model, names = opened(folders / kind)
    assert names == NAMES and hub_models.view(model)[0] == 16
    with torch.inference_mode():
        before, embedding = layers.forward(model, images())
        torch.testing.assert_close(layers.classifier(model)(embedding), before)
        layers.widen(model, 10, names=[*NAMES, "8", "9"])
        wide = model(images())
        layers.select_rows(model, [9, 3])
        torch.testing.assert_close(model(images()), wide[:, [9, 3]])
    assert before.shape == (3, 8) and wide.shape == (3, 10)
    torch.testing.assert_close(wide[:, :8], before)


@pytest.mark.parametrize("kind", KINDS)
def test_every_adapter_has_a_gradient_and_merging_changes_nothing(folders, kind):
    model, _ = opened(folders / kind)
    targets = layers.adapter_targets(model)
    assert targets["ffn"] and (targets["attention"] or kind == "convnextv2")
    model.requires_grad_(False)
    lora.inject(model, [*targets["ffn"], *targets["attention"]], 2, 2.0)
    with torch.no_grad():
        for layer in lora.adapters(model).values():
            torch.nn.init.normal_(layer.lora_B, std=0.1)
    model(images()).log_softmax(-1)[:, 0].sum().backward()
    dead = [name for name, layer in lora.adapters(model).items() for f in layer.live() if not f.grad.abs().sum() > 0]
    assert not dead
    with torch.inference_mode():
        torch.testing.assert_close(adapters.merge(model)(images()), model(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "kind", [k if k in ("dinov2", "clip") else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_a_swap_moves_adapters_and_new_rows_and_its_export_is_read_by_transformers_alone(
    folders, kind, tmp_path, alone
):
    names = ["--class-names", ",".join(NAMES)] if kind == "clip" else []
    run(
        "swap", "--model", f"hf:{folders / kind}", *names, *SWAP, *FAST, "--output-dir", tmp_path / "run", "--no-report"
    )
    base, _ = opened(folders / kind)
    swapped = SESSION.load(tmp_path / "run", {}).base
    assert swapped.classes == [*NAMES, "8"] and lora.adapters(swapped.model)
    head = layers.classifier_name(base)
    plain = dict(base.named_parameters())
    for name, value in swapped.model.named_parameters():
        if name.startswith(f"{head}."):
            assert torch.equal(value[:8], plain[name]) and len(value) == 9, name
        elif "lora_" in name:
            assert "lora_A" in name or value.abs().sum() > 0, name
        elif name in plain:
            assert torch.equal(value, plain[name]), name
    run("evaluate", tmp_path / "run")
    run("export", tmp_path / "run", tmp_path / "out", "--format", "folder")
    run("evaluate", tmp_path / "out", "--data", "digits", "--classes", "0,8")
    with torch.inference_mode():
        expected = swapped.model(images())
    theirs = alone(type(base.network).__name__, tmp_path / "out", images())
    torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=1e-4)
    assert hub.row_names(hub.read_config(tmp_path / "out")) == swapped.classes


def test_clips_rows_are_what_clip_itself_says_of_the_names(folders):
    from transformers import CLIPModel, PreTrainedTokenizerFast

    model, names = opened(folders / "clip")
    theirs = CLIPModel.from_pretrained(folders / "clip").eval()
    words = PreTrainedTokenizerFast(tokenizer_file=str(folders / "clip/tokenizer.json"), pad_token="<|endoftext|>")
    read = words([f"a photo of a {name}." for name in names], padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = theirs(input_ids=read["input_ids"], attention_mask=read["attention_mask"], pixel_values=images())
        torch.testing.assert_close(model(images()), expected.logits_per_image, rtol=1e-4, atol=1e-4)


def test_a_tower_without_a_classifier_is_trained_first(folders, tmp_path, capsys):
    folder = tmp_path / "bare"
    hub_models.load(folders / "dinov3_vit")[0].save(folder, NAMES)
    (folder / hub_models.HEAD).unlink()
    words = ["--model", f"hf:{folder}", *SWAP, "--output-dir", str(tmp_path / "run")]
    assert commands.main(SESSION, "swap", words) == 2 and "pretrain.py makes one" in capsys.readouterr().err
    run("pretrain", "--model", f"hf:{folder}", "--data", "digits", "--classes", "0,1,2", "--steps", "2", "--batch-size", "4",
        "--threads", "1", "--device", "cpu", "--output-dir", tmp_path / "base", "--no-report")  # fmt: skip
    base = SESSION.load(tmp_path / "base", {}).base
    assert base.classes == ["0", "1", "2"] and base.model(images()).shape == (3, 3)
    run("evaluate", tmp_path / "base")


def test_permanent_removal_leaves_no_row_of_the_forgotten(folders, tmp_path):
    run("swap", "--model", f"hf:{folders / 'dinov2'}", *SWAP, *FAST, "--output-dir", tmp_path / "run", "--no-report")
    run("export", tmp_path / "run", tmp_path / "out", "--format", "folder", "--permanent")
    config = hub.read_config(tmp_path / "out")
    assert "1" not in hub.row_names(config) and len(hub.row_names(config)) == 8
    assert load_file(tmp_path / "out/model.safetensors")["classifier.weight"].shape[0] == 8
