"""Published command lines and configs of segmentation turned into ours."""

from pathlib import Path

import pytest
from ks_segmentation import load_config, published
from ks_segmentation.config import words as config_words
from ks_segmentation.session import SESSION

from common.errors import UserError
from common.run_flags import parsed

ROOT = Path(__file__).parents[2] / "semantic-segmentation"


def test_the_published_flags_are_translated(monkeypatch):
    line = "--config-file c.yaml --num-gpus 2 --learnsetname pet --learnset L --forgetset F --retainset=R --resume"
    words = ["MODEL.WEIGHTS", "m.pth", "SOLVER.IMS_PER_BATCH", "6", "OUTPUT_DIR", "out"]
    ours, ignored = published.translate([*line.split(), *words], "lfl")
    assert ours[:3] == ["--reference", "--order", "lfl"] and ignored == ["--resume"]
    assert ours[-9:] == SESSION.tidy(words) and "--num-gpus 2" in " ".join(ours)
    monkeypatch.setenv("WORLD_SIZE", "2")  # as in each of the two processes
    monkeypatch.setattr(config_words, "load_config", lambda file, words: load_config(None, words))
    settings = parsed(SESSION, "swap", ours)
    assert (settings.train.batch_size, settings.record.output_dir, settings.lora.lora_alpha) == (3, "out", 1)
    assert settings[SESSION.source].retainset == "R"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--eval-only"], "evaluate.py"),
        (["--num-machines", "2"], "torchrun"),
        ([], "--config-file, --learnsetname, .* --retainset is missing"),
    ],
)
def test_published_lines_that_cannot_run_are_refused(more, message):
    line = ["--config-file", "c.yaml", "--learnsetname", "pet", "--learnset", "L", "--forgetset", "F"]
    with pytest.raises(UserError, match=message):
        published.translate([*line, *more], "fltf")


@pytest.mark.parametrize("order", ["fltf", "fftl", "lfl", "flf"])
def test_every_order_has_its_published_script(order):
    assert f'main("{order}")' in (ROOT / f"swapping_{order}.py").read_text()


def test_a_swap_config_sets_the_flags_that_mean_the_same():
    path = ROOT / "configs/ade20k/semantic-segmentation/swin/maskformer2_swin_base_IN21k_swap.yaml"
    found = config_words.stated(["--config-file", str(path)])
    assert (found["steps"], found["bound"], found["lora_rank"], found["clip"]) == (3500, 115, 8, 0.01)
    assert found["bound_per_item"] is False  # the bound is the published loss's
    assert config_words.stated(["--config-file", str(path.parent / "maskformer2_swin_tiny_bs16_160k.yaml")]) == {}
