"""Checkpoints in and out: detectron2, Knowledge Swapping, transformers; and files that must not run."""

import os
import pickle
import zlib
from pathlib import Path

import ks_segmentation
import numpy as np
import pytest
import torch
from ks_segmentation.checkpoints.export import detectron2_state, export_detectron2
from ks_segmentation.checkpoints.key_map import key_map
from ks_segmentation.checkpoints.load import load_checkpoint, load_weights
from ks_segmentation.checkpoints.read_file import read_weights
from tiny_mask2former import RESNET, SWIN, config, model

from common.errors import UserError
from common.lora import adapters, inject

ADE = Path(__file__).parents[2] / "semantic-segmentation/configs/ade20k/semantic-segmentation"
GOLDEN = Path(__file__).parents[1] / "golden/m2f_swinT_ade20k.npz"
FFN = (".linear1.weight", ".linear2.weight", ".mlp.fc1.weight", ".mlp.fc2.weight")


def answers(m, seed=3):
    with torch.no_grad():
        out = m(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed)))
    return out["pred_logits"], out["pred_masks"]


def assert_same(a, b, **close):
    for x, y in zip(answers(a), answers(b), strict=True):
        torch.testing.assert_close(x, y, **(close or {"rtol": 0, "atol": 0}))


@pytest.mark.parametrize(
    "backbone", [SWIN, RESNET, ["MODEL.BACKBONE.NAME", "mobilenet_v2"]], ids=["swin", "resnet", "mobilenet"]
)
@pytest.mark.parametrize("ending", [".pth", ".pkl"])
def test_export_and_load_is_exact(backbone, ending, tmp_path):
    ours = model(backbone)
    path = export_detectron2(ours, tmp_path / f"m{ending}")
    assert_same(ours, load_checkpoint(path, config(backbone)))
    assert os.listdir(tmp_path) == [path.name]  # no half-written file stays behind


class Versioned(torch.nn.Module):
    """A module of the given tensors whose parts rename what comes without version 2, as Mask2Former's parts do."""

    _version = 2

    def __init__(self, state, prefix=""):
        super().__init__()
        self.renamed = {
            "sem_seg_head.": ("sem_seg_head.", "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."),
            "sem_seg_head.predictor.": ("static_query", "query_feat", "\n"),
        }.get(prefix)
        for child in dict.fromkeys(key.partition(".")[0] for key in state if "." in key):
            below = {k.partition(".")[2]: v for k, v in state.items() if k.startswith(child + ".")}
            self.add_module(child, Versioned(below, f"{prefix}{child}."))
        for leaf in (key for key in state if "." not in key):
            self.register_buffer(leaf, torch.full_like(state[leaf], 7))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        if self.renamed and (local_metadata.get("version") or 1) < 2:
            old, new, kept = self.renamed
            for key in [k for k in state_dict if old in k and not k.startswith(kept)]:
                state_dict[key.replace(old, new)] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


@pytest.mark.parametrize("ending", [".pth", ".pkl"])
def test_an_exported_file_says_that_its_names_are_those_of_version_2(ending, tmp_path):
    path = export_detectron2(model(), tmp_path / f"m{ending}")
    file = torch.load(path, weights_only=True) if ending == ".pth" else pickle.loads(path.read_bytes())
    saved = file["model"]
    for key, value in saved.items():  # detectron2 turns arrays into tensors in place
        saved[key] = torch.as_tensor(value)
    head = Versioned(saved)
    head.load_state_dict(saved, strict=True)
    assert all(torch.equal(value, saved[key]) for key, value in head.state_dict().items())
    assert saved._metadata == {"sem_seg_head": {"version": 2}, "sem_seg_head.predictor": {"version": 2}}
    assert set(read_weights(path)) == set(saved)


def test_names_without_a_version_are_renamed_by_such_a_head():
    state = detectron2_state(model())
    with pytest.raises(RuntimeError, match="Missing key"):
        Versioned(state).load_state_dict(dict(state), strict=True)


def test_every_tensor_has_a_name_in_the_published_layout():
    for backbone in (SWIN, RESNET):
        ours = model(backbone, "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ", True)
        mapped = {name for names in key_map(ours).values() for name in names}
        assert mapped == {n for n in ours.state_dict() if not n.endswith("relative_position_index")}


@pytest.mark.parametrize(
    ("name", "keys", "parameters"),
    [("maskformer2_R50_bs16_160k", 558, 43_988_247),
     ("swin/maskformer2_swin_base_IN21k_384_bs16_160k_res640", 650, 106_922_191)],
)  # fmt: skip
def test_published_counts(name, keys, parameters):
    with torch.device("meta"):  # sizes only
        made = ks_segmentation.build_mask2former(ADE / f"{name}.yaml")
    assert sum(p.numel() for p in made.parameters()) == parameters
    assert len(detectron2_names(made)) == keys


def detectron2_names(made):
    blocks = sum(made.config.MODEL.SWIN.DEPTHS) if made.config.MODEL.BACKBONE.NAME == "D2SwinTransformer" else 0
    return [*key_map(made), *range(blocks), "criterion.empty_weight"]


def published_value(name, shape):
    """The pseudo-random content of one published tensor, from its name and shape alone."""
    x = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape).astype(np.float32)
    if len(shape) >= 2:
        return (x / np.sqrt(int(np.prod(shape[1:])))).astype(np.float32)
    return (1 + 0.1 * x if name.endswith("weight") else 0.1 * x).astype(np.float32)


def test_answers_are_the_published_models():
    """Swin-T on ADE20K: every tensor filled by its name, answers of the original code (a part of them)."""
    made = ks_segmentation.build_mask2former(ADE / "swin/maskformer2_swin_tiny_bs16_160k.yaml")
    state = detectron2_state(made)
    filled = {k: published_value(k, tuple(v.shape)) for k, v in state.items() if v.is_floating_point()}
    load_weights(made, filled)
    image = np.random.Generator(np.random.PCG64(7)).standard_normal((3, 192, 256)).astype(np.float32)
    with torch.no_grad():
        out = made.eval()(torch.from_numpy(image)[None])
    golden = np.load(GOLDEN)
    for name, step in (("pred_logits", np.s_[:, ::2]), ("pred_masks", np.s_[:, ::10, ::4, ::4])):
        expected = golden[name]
        assert np.abs(out[name].numpy()[step] - expected).max() < 1e-4 * np.abs(expected).max()


def test_names_of_old_head_versions_are_renamed():
    ours = model()
    old = {}
    for key, value in detectron2_state(ours).items():
        key = key.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.").replace("query_feat", "static_query")
        old["module." + key] = value
    assert_same(ours, load_checkpoint({"model": old}, config()))


def test_loralib_adapters_become_adapters_scaled_by_one_over_rank():
    state = detectron2_state(model())
    merged, adapted = dict(state), dict(state)
    for key in [k for k in state if k.endswith(FFN)]:
        a, b = torch.randn(2, state[key].shape[1]) / 4, torch.randn(state[key].shape[0], 2) / 4
        adapted[key.replace("weight", "lora_A")], adapted[key.replace("weight", "lora_B")] = a, b
        merged[key] = state[key] + b @ a / 2
    loaded = load_checkpoint(adapted, config())
    assert len(adapters(loaded)) == 2 * (5 + 2 + 3) and {m.scale for m in adapters(loaded).values()} == {0.5}
    assert_same(loaded, load_checkpoint(merged, config()), rtol=1e-4, atol=1e-4)
    for key, value in detectron2_state(loaded).items():  # merged on the way out
        torch.testing.assert_close(value, merged[key])


def test_export_merges_adapters_and_leaves_the_model_alone(tmp_path):
    ours = model()
    decoder = "network.model.transformer_module.decoder.layers.0"
    inject(ours, [f"{decoder}.fc1", f"{decoder}.cross_attn"], rank=2)
    with torch.no_grad():
        for adapter in adapters(ours).values():
            adapter.lora_B.normal_()
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    path = export_detectron2(ours, tmp_path / "m.pth")
    assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items())
    assert not any("lora" in key for key in read_weights(path))
    assert_same(ours, load_checkpoint(path, config()), rtol=1e-4, atol=1e-4)


def test_transformers_folders_load_in_old_and_new_names(tmp_path):
    from safetensors.torch import save_file

    ours = model()
    ours.network.save_pretrained(tmp_path / "folder")
    assert_same(ours, load_checkpoint(tmp_path / "folder", config()))
    old = {}
    for key, value in ours.network.state_dict().items():
        for new, hub in ((".swin.", "."), (".relative_position_bias.relative", ".self.relative"), ("o_proj", "output.dense"),
                         ("attention.q_proj", "attention.self.query"), ("attention.k_proj", "attention.self.key"),
                         ("attention.v_proj", "attention.self.value"), (".mlp.fc1", ".intermediate.dense"),
                         (".mlp.fc2", ".output.dense")):  # fmt: skip
            if "pixel_level_module.encoder" in key:
                key = key.replace(new, hub)
        old[key] = value.contiguous()
    save_file(old, tmp_path / "old.safetensors")
    assert_same(ours, load_checkpoint(tmp_path / "old.safetensors", config()))


def test_a_larger_head_keeps_the_old_rows_and_no_object_last():
    ours = model()
    key = "sem_seg_head.predictor.class_embed.weight"
    for overrides in (["MODEL.SEM_SEG_HEAD.LORA_RANK", 2], []):
        bigger = config(SWIN, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 8, *overrides)
        loaded = load_checkpoint(detectron2_state(ours), bigger, rehead=None if overrides else True)
        new, old = detectron2_state(loaded)[key], detectron2_state(ours)[key]
        assert new.shape[0] == 9
        assert torch.equal(new[:5], old[:5]) and torch.equal(new[8], old[5])
        a, b = answers(ours), answers(loaded)
        torch.testing.assert_close(a[0], b[0][..., [0, 1, 2, 3, 4, 8]])


@pytest.mark.parametrize("classes", [3, 8])
def test_another_number_of_classes_is_an_error(classes):
    with pytest.raises(UserError, match=f"knows 5 classes and the config {classes}.*NUM_CLASSES 5"):
        load_checkpoint(detectron2_state(model()), config(SWIN, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", classes))


def test_weights_of_another_architecture_are_an_error():
    with pytest.raises(UserError, match="lacks .* first `backbone"):
        load_checkpoint(detectron2_state(model(RESNET)), config(SWIN))
    with pytest.raises(UserError, match="whole numbers"):
        load_checkpoint({name: t.int() for name, t in detectron2_state(model()).items()}, config(SWIN))
    with pytest.raises(UserError, match="this config makes it"):
        load_checkpoint(detectron2_state(model()), config(SWIN, "MODEL.SWIN.EMBED_DIM", 32))


def test_backbone_weights_alone_start_a_model():
    ours, other = model(), model(seed=1)
    whole = detectron2_state(ours)
    load_weights(
        other, {k.removeprefix("backbone."): v for k, v in whole.items() if k.startswith("backbone")}, partial=True
    )
    mixed = detectron2_state(other)
    assert all(
        torch.equal(mixed[k], v) == k.startswith("backbone") for k, v in whole.items() if k.endswith("proj.weight")
    )


class Runs:
    def __reduce__(self):
        return os.system, ("touch PWNED",)


class Opens:
    def __reduce__(self):
        return open, ("PWNED", "w")


class Codec:
    def __reduce__(self):
        import _codecs

        return _codecs.encode, ("x", "rot13")


@pytest.mark.parametrize("content", [Runs(), {"model": {"a": Opens()}}, [Codec()]])
@pytest.mark.parametrize("ending", [".pkl", ".pth"])
def test_a_file_that_calls_something_is_refused(content, ending, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"bad{ending}"
    if ending == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(UserError) as error:
        load_checkpoint(path, config())
    assert "\n" not in str(error.value) and not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("ending", [".pkl", ".pth", ".safetensors"])
def test_a_broken_file_gets_one_line(ending, tmp_path):
    path = tmp_path / f"broken{ending}"
    path.write_bytes(b"\x80\x04nothing")
    with pytest.raises(UserError) as error:
        read_weights(path)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such file"):
        read_weights(tmp_path / f"nowhere{ending}")


def test_an_old_pickle_of_arrays_loads(tmp_path):
    for protocol in range(6):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps({"model": {"a": np.arange(3.0)}, "__author__": "x"}, protocol=protocol))
        assert torch.equal(read_weights(path)["a"], torch.arange(3.0, dtype=torch.float64))


def test_importing_the_package_imports_nothing_heavy():
    import subprocess
    import sys

    code = "import sys, ks_segmentation; sys.exit('transformers' in sys.modules or 'torch' in sys.modules)"
    folders = os.pathsep.join(p for p in sys.path if p)
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": folders}).returncode == 0
