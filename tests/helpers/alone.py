"""A process that has transformers and not this package: what it says of exported folders."""

from __future__ import annotations

import subprocess
import sys

import torch

SCRIPT = """
import sys, torch, transformers
from safetensors.torch import load_file

def answer(kind, folder, images):
    model = getattr(transformers, kind).from_pretrained(folder).eval()
    if kind.startswith("OneFormer"):
        task = torch.zeros(len(images), 77)
        task[:, :7] = torch.tensor([49406, 518, 10549, 533, 29119, 1550, 49407])
        return model(images, task).class_queries_logits
    if kind.startswith("MaskFormer"):  # it needs hidden states with auxiliary losses, and does not ask itself for them
        return model(images, output_hidden_states=True).class_queries_logits
    if kind.startswith("Siglip2"):
        p = model.config.vision_config.patch_size
        patches = images.unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        mask, side = torch.ones(patches.shape[:2], dtype=torch.long), images.shape[-1] // p
        shapes = torch.tensor([[side, side]] * len(images))
        return model(patches, pixel_attention_mask=mask, spatial_shapes=shapes).logits
    if kind == "DINOv3ViTModel":
        head = load_file(folder + "/head.safetensors")
        return model(images).pooler_output @ head["weight"].T + head["bias"]
    if kind == "CLIPModel":
        found = model.get_image_features(pixel_values=images).pooler_output
        return found / found.norm(dim=-1, keepdim=True) @ load_file(folder + "/head.safetensors")["weight"].T
    out = model(images)
    return out["logits" if "logits" in out else "class_queries_logits"]

for line in sys.stdin:
    kind, folder = line.split()
    with torch.inference_mode():
        torch.save(answer(kind, folder, torch.load(folder + "/images.pt")), folder + "/answer.pt")
    assert not any(name.startswith(("common", "ks_")) for name in sys.modules)
    print("done", flush=True)
"""


class Alone:
    """`alone(kind, folder, images)`: the logits of `from_pretrained` there."""

    def __init__(self, folder):
        self.errors = (folder / "errors.txt").open("w+")
        self.process = subprocess.Popen([sys.executable, "-I", "-c", SCRIPT], stdin=-1, stdout=-1, text=True, cwd=folder,
                                        stderr=self.errors)  # fmt: skip

    def __call__(self, kind, folder, images):
        torch.save(images, folder / "images.pt")
        self.process.stdin.write(f"{kind} {folder}\n")
        self.process.stdin.flush()
        done = self.process.stdout.readline()
        self.errors.seek(0)
        assert done == "done\n", self.errors.read()
        return torch.load(folder / "answer.pt")

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()
