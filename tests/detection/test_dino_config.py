"""Config files are data: literals, bases, options; anything that would run is refused with its line."""

import pytest
from ks_detection.models.dino.config import DinoConfig
from ks_detection.models.parts.config_file import read_config

from common.errors import UserError

BASE = """
data_aug_scales = [480, 512]
lr = 0.0001
nested = dict_free = 1
"""


def write(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


def test_bases_are_merged_and_options_win(tmp_path):
    write(tmp_path, "base.py", "lr = 1e-4\nbackbone = 'resnet50'\ndeep = {'a': {'b': 1, 'c': 2}}\n")
    child = write(tmp_path, "child.py", "'''text'''\n_base_ = ['base.py']\nlr = -2\ndeep = {'a': {'b': 3}}\n")
    options = ["embed_init_tgt=TRUE", "dn_box_noise_scale=1.0", "deep.a.c=5", "frozen_weights=None", "lr_drop=[3,4]"]
    values = read_config(child, options)
    assert values["lr"] == -2 and values["backbone"] == "resnet50" and values["deep"] == {"a": {"b": 3, "c": 5}}
    assert values["embed_init_tgt"] is True and values["dn_box_noise_scale"] == 1.0
    assert values["frozen_weights"] is None and values["lr_drop"] == [3, 4]


@pytest.mark.parametrize(
    "line", ["import os", "x = open('f')", "x = y", "os.system('ls')", "x = [i for i in range(3)]", "nested = a = 1"]
)
def test_what_would_have_to_run_is_refused(tmp_path, line):
    path = write(tmp_path, "evil.py", f"lr = 1\n{line}\n")
    with pytest.raises(UserError, match="line 2"):
        read_config(path)


def test_broken_files_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_config(tmp_path / "none.py")
    with pytest.raises(UserError, match="not readable"):
        read_config(write(tmp_path, "a.py", "x = = 1"))
    with pytest.raises(UserError, match="names itself"):
        read_config(write(tmp_path, "b.py", "_base_ = 'b.py'"))
    with pytest.raises(UserError, match="key=value"):
        read_config(write(tmp_path, "c.py", ""), ["lr"])


def test_published_values_give_the_published_model_and_others_are_refused():
    published = {
        "num_classes": 91,
        "two_stage_type": "standard",
        "pre_norm": False,
        "lr": 1e-4,
        "pdetr3_bbox_embed_diff_each_layer": False,
    }
    assert DinoConfig.from_dict(published) == DinoConfig()
    with pytest.raises(UserError, match="two_stage_type"):
        DinoConfig.from_dict({"two_stage_type": "no"})
    with pytest.raises(UserError, match="backbone"):
        DinoConfig(backbone="vgg")
    assert DinoConfig.from_dict(DinoConfig(num_classes=7).to_dict()) == DinoConfig(num_classes=7)


def test_configs_here_build_their_models():
    from pathlib import Path

    import ks_detection

    folder = Path(__file__).parents[2] / "object-detection" / "configs"
    assert sum(p.numel() for p in ks_detection.build_dino(folder / "digits.py").parameters()) < 2_000_000
    swap = DinoConfig.from_dict(read_config(folder / "dino_swinL_4scale_swap.py"))
    assert (swap.backbone, swap.num_classes, swap.dn_labelbook_size) == ("swin_L_384_22k", 101, 102)
    assert swap.dn_box_noise_scale == 1.0 and swap.use_checkpoint
