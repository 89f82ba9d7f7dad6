"""Three toy domains with the batches and outputs of the real ones; a run takes a fraction of a second.

An item is an image of three places with eight features each; a class is a direction in feature space.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import distributed, methods
from common.domain import ClassTable, Domain, GalleryItem, Prediction, Read
from common.plan import Plan, make_plan
from common.record import Run
from common.settings import EVERY, settings_from
from common.trainer import Trainer

PLACES, FEATURES, WIDTH = 3, 8, 16
BASE = tuple(f"c{i}" for i in range(6))
NEW = ("n0", "n1")
NOTHING = -1


class Item(NamedTuple):
    """One image: [3, 8] features, the class of each place (-1 where there is nothing), a name."""

    image: Tensor
    places: Tensor
    name: str


def make_items(table: ClassTable, per_class: int, seed: int, crowded: bool) -> list[Item]:
    """`per_class` images of every class; `crowded` fills all places, else one to three of them."""
    centres = 2 * torch.randn(len(table), FEATURES, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    items = []
    for row, name in enumerate(table.names):
        for k in range(per_class):
            count = PLACES if crowded else 1 + int(torch.randint(PLACES, (), generator=generator))
            places = torch.full((PLACES,), NOTHING)
            places[torch.randperm(PLACES, generator=generator)[:count]] = row
            image = 0.5 * torch.randn(PLACES, FEATURES, generator=generator)
            image[places == row] += centres[row]
            items.append(Item(image, places, f"{name}_{k}.png"))
    return items


class ToyDomain(Domain):
    """What the three toys share: data, rows, scores. Subclasses give the model and the batch their real shapes."""

    metric, metric_label, crowded, head = "acc", "accuracy (%)", True, "head"

    def __init__(
        self, base: nn.Module | None = None, per_class: int = 16, dropout: float = 0.0, poison: str = ""
    ) -> None:
        self.base, self.dropout, self.poison = base, dropout, poison
        self.classes = ClassTable(BASE + NEW)
        self.items = {
            True: make_items(self.classes, per_class, 1, self.crowded),
            False: make_items(self.classes, 8, 2, self.crowded),
        }

    def make_model(self) -> nn.Module:
        raise NotImplementedError

    def build_model(self, pretrained: bool = True) -> nn.Module:
        model = copy.deepcopy(self.base) if pretrained and self.base is not None else self.make_model()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = self.dropout
        return model

    def head_rows(self, model: nn.Module, classes: Sequence[str]) -> dict[str, list[int]]:
        rows = self.classes.rows(classes)
        return {f"{self.head}.weight": rows, f"{self.head}.bias": rows}

    def _of(self, classes: Sequence[str], train: bool) -> list[Item]:
        rows = self.classes.rows(classes)
        return [item for item in self.items[train] if int(item.places.max()) in rows]

    def size(self, classes: Sequence[str], *, train: bool) -> int:
        return len(self._of(classes, train))

    def loader(self, classes: Sequence[str], *, train: bool, stream=None) -> Iterable[Any]:
        items = self._of(classes, train)
        if stream is None:
            share = items[distributed.rank() :: distributed.world()]
            return iter([self.collate(share)] if share else [])
        batches = stream.batches(len(items))
        return (self.collate([augmented(items[d.index], d.seed, self.poison) for d in batch]) for batch in batches)

    def collate(self, items: list[Item]) -> Any:
        raise NotImplementedError

    def answers(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """(scores [N, C], labels [N]) of the annotated things of a batch."""
        prediction = self.predict(model, batch)
        return prediction.scores, prediction.labels

    def evaluate(self, model: nn.Module, classes: Sequence[str]) -> dict[str, float]:
        counts = torch.zeros(2, len(self.classes))
        for batch in self.loader(classes, train=False):
            scores, labels = self.answers(model, batch)
            counts[0].index_add_(0, labels, (scores.argmax(-1) == labels).float())
            counts[1].index_add_(0, labels, torch.ones(len(labels)))
        right, count = distributed.total(counts)
        rows = self.classes.rows(classes)
        total = 100 * float(right[rows].sum() / count[rows].sum())
        return {"total": total, **{c: 100 * float(right[r] / count[r]) for c, r in zip(classes, rows, strict=True)}}

    def gallery(self, model: nn.Module, classes: Sequence[str], count: int) -> list[GalleryItem]:
        from PIL import Image

        picture = io.BytesIO()
        Image.new("RGB", (2, 2)).save(picture, "PNG")
        items = self._of(classes, False)[:count]
        scores, labels = self.answers(model, self.collate(items[:1]))
        answer = self.classes.names[int(scores[0].argmax())]
        truth = self.classes.names[int(labels[0])]
        return [GalleryItem(i.name, picture.getvalue(), truth, answer, answer == truth) for i in items[:1]]

    def describe(self) -> dict[str, Any]:
        return {"images": len(self.items[True]), "dropout": self.dropout}


def augmented(item: Item, seed: int | None, poison: str = "") -> Item:
    """The item with noise from its own seed; NaN when its name is `poison`."""
    if seed is None:
        return item
    noise = 0.2 * torch.randn(item.image.shape, generator=torch.Generator().manual_seed(seed))
    return item._replace(image=item.image + noise + (float("nan") if item.name == poison else 0.0))


# ---- classification: a pair of tensors, a ViT with fused qkv -------------------------------------------------


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.drop = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(F.gelu(self.fc1(x))))


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, L, E / heads] each
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ToyViT(nn.Module):
    """[B, 3, 8] -> logits [B, C]; module names as in timm."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.patch_embed = nn.Linear(FEATURES, WIDTH)
        self.blocks = nn.Sequential(*(Block(WIDTH) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.norm(self.blocks(self.patch_embed(x))).mean(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x))


class Images(NamedTuple):
    images: Tensor  # [B, 3, 8]
    labels: Tensor  # [B]
    names: list[str]


class ToyClassification(ToyDomain):
    name = "toy-classification"

    def make_model(self) -> nn.Module:
        return ToyViT(len(self.classes))

    def lora_targets(self, model: nn.Module) -> dict[str, list[str]]:
        return {
            "ffn": [f"blocks.{i}.mlp.fc{j}" for i in range(2) for j in (1, 2)],
            "attention": [f"blocks.{i}.attn.{part}" for i in range(2) for part in ("qkv", "proj")],
        }

    def collate(self, items: list[Item]) -> Images:
        images, places, names = zip(*items, strict=True)
        return Images(torch.stack(images), torch.stack(places).max(1).values, list(names))

    def predict(self, model: nn.Module, batch: Images) -> Prediction:
        return self.predict_together(model, [batch])[0]

    def predict_together(
        self, model: nn.Module, batches: Sequence[Images], read: Sequence[Read] = ()
    ) -> list[Prediction]:
        features = model.forward_features(torch.cat([b.images for b in batches]))
        scores, sizes = model.head(features).float(), [len(b.labels) for b in batches]
        result = []
        for batch, s, e in zip(batches, scores.split(sizes), features.split(sizes), strict=True):
            loss = F.cross_entropy(s, batch.labels, reduction="none")
            result.append(Prediction(loss.mean(), s, e, batch.labels, loss))
        return result

    def item_names(self, batch: Images) -> list[str]:
        return batch.names


# ---- detection: a list of targets, queries matched to objects ------------------------------------------------


class DecoderLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.linear1, self.dropout, self.linear2 = nn.Linear(width, 32), nn.Dropout(0.0), nn.Linear(32, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x, x, x, need_weights=False)[0])
        return self.norm2(x + self.linear2(self.dropout(F.relu(self.linear1(x)))))


class ToyDetector(nn.Module):
    """[B, 3, 8] -> {"pred_logits": [B, 3, C], "pred_boxes": [B, 3]}; one query per place."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.input_proj = nn.Linear(FEATURES, WIDTH)
        self.transformer = nn.ModuleDict(
            {"decoder": nn.ModuleDict({"layers": nn.Sequential(*(DecoderLayer(WIDTH) for _ in range(2)))})}
        )
        self.class_embed, self.bbox_embed = nn.Linear(WIDTH, classes), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.transformer["decoder"]["layers"](self.input_proj(x))  # [B, 3, E]
        boxes = torch.arange(PLACES) + 0.2 * self.bbox_embed(hidden)[..., 0].tanh()
        return {"pred_logits": self.class_embed(hidden), "pred_boxes": boxes, "hidden": hidden}


class ToyDetection(ToyDomain):
    name, metric, metric_label, crowded, head = "toy-detection", "map", "box AP (%)", False, "class_embed"

    def make_model(self) -> nn.Module:
        return ToyDetector(len(self.classes))

    def lora_targets(self, model: nn.Module) -> dict[str, list[str]]:
        layers = [f"transformer.decoder.layers.{i}" for i in range(2)]
        return {
            "ffn": [f"{layer}.linear{j}" for layer in layers for j in (1, 2)],
            "attention": [f"{layer}.self_attn" for layer in layers],
        }

    def collate(self, items: list[Item]) -> tuple[Tensor, list[dict[str, Any]]]:
        targets = []
        for item in items:
            where = (item.places != NOTHING).nonzero()[:, 0]
            targets.append({"labels": item.places[where], "boxes": where.float(), "file_name": item.name})
        return torch.stack([item.image for item in items]), targets

    def predict(self, model: nn.Module, batch: tuple[Tensor, list[dict[str, Any]]]) -> Prediction:
        from scipy.optimize import linear_sum_assignment

        images, targets = batch
        out = model(images)
        rows, queries = [], []
        for b, target in enumerate(targets):
            cost = (out["pred_boxes"][b, :, None] - target["boxes"]).abs().detach()  # [queries, objects]
            q, t = linear_sum_assignment(cost.nan_to_num().numpy())
            queries += [query for _, query in sorted(zip(t.tolist(), q.tolist(), strict=True))]
            rows += [b] * len(q)
        labels = torch.cat([t["labels"] for t in targets])
        boxes = torch.cat([t["boxes"] for t in targets])
        scores = out["pred_logits"][rows, queries].float()
        loss = F.cross_entropy(scores, labels, reduction="none") + (out["pred_boxes"][rows, queries] - boxes).abs()
        count = distributed.mean(torch.tensor(float(len(labels))))  # as DETR: the objects of all ranks
        return Prediction(loss.sum() / count, scores, out["hidden"][rows, queries].float(), labels, loss)

    def item_names(self, batch: tuple[Tensor, list[dict[str, Any]]]) -> list[str]:
        return [target["file_name"] for target in batch[1]]


# ---- segmentation: a list of dicts, a dict of losses, no loss per item ---------------------------------------


class FFNLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear1, self.linear2, self.norm = nn.Linear(width, 32), nn.Linear(32, width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.linear2(F.relu(self.linear1(x))))


class ToySegmenter(nn.Module):
    """[B, 3, 8] -> logits of every pixel [B, 3, C]; a backbone with running statistics, as ResNets have."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"stem": nn.Linear(FEATURES, WIDTH), "bn": nn.BatchNorm1d(WIDTH)})
        layers = nn.Sequential(*(FFNLayer(WIDTH) for _ in range(2)))
        self.predictor = nn.ModuleDict({"transformer_ffn_layers": layers, "class_embed": nn.Linear(WIDTH, classes)})
        self.unused = nn.Linear(2, 2)  # published models have parameters that a loss does not reach

    def features(self, x: Tensor) -> Tensor:
        x = self.backbone["stem"](x)
        x = self.backbone["bn"](x.flatten(0, 1)).view_as(x)
        return self.predictor["transformer_ffn_layers"](x)

    def forward(self, x: Tensor) -> Tensor:
        return self.predictor["class_embed"](self.features(x))


class ToySegmentation(ToyDomain):
    name, metric, metric_label, head = "toy-segmentation", "miou", "mean IoU (%)", "predictor.class_embed"

    def make_model(self) -> nn.Module:
        return ToySegmenter(len(self.classes))

    def lora_targets(self, model: nn.Module) -> dict[str, list[str]]:
        return {"ffn": [f"predictor.transformer_ffn_layers.{i}.linear{j}" for i in range(2) for j in (1, 2)]}

    def collate(self, items: list[Item]) -> list[dict[str, Any]]:
        return [{"image": i.image, "sem_seg": i.places, "file_name": i.name} for i in items]

    def predict(self, model: nn.Module, batch: list[dict[str, Any]]) -> Prediction:
        features = model.features(torch.stack([entry["image"] for entry in batch]))
        pixels = model.predictor["class_embed"](features).float()  # [B, 3, C]
        masks = torch.stack([entry["sem_seg"] for entry in batch])
        losses = {"loss_ce": F.cross_entropy(pixels.flatten(0, 1), masks.flatten())}
        labels = masks[:, 0]  # one segment per image
        return Prediction(sum(losses.values()), pixels.mean(1), features.float().mean(1), labels, None)

    def item_names(self, batch: list[dict[str, Any]]) -> list[str]:
        return [entry["file_name"] for entry in batch]


DOMAINS: dict[str, type[ToyDomain]] = {
    "classification": ToyClassification,
    "detection": ToyDetection,
    "segmentation": ToySegmentation,
}


def make_trainer(domain: Domain, plan: Plan, method: str, folder, overwrite: bool = False, **settings) -> Trainer:
    """A trainer of `plan`; settings go to TrainConfig, LoraConfig or the method's Config, by name."""
    defaults = {
        "device": "cpu",
        "precision": "fp32",
        "epochs": 1,
        "batch_size": 8,
        "lr": 1e-2,
        "gallery": 1,
        "lora_rank": 2,
    }
    flags = {**defaults, "method": method, "overwrite": overwrite, **settings}
    unknown = set(settings) - {f.name for kind in (*EVERY, methods.load(method).Config) for f in fields(kind)}
    assert not unknown, f"no such settings: {unknown}"
    return Trainer(domain, plan, settings_from((), flags), Run(folder))


def swap_plan(order: str = "fltf") -> Plan:
    """Learn the two new classes, forget the first two, retain the other four."""
    return make_plan(order, NEW, BASE[:2], BASE[2:])


def pretrain(kind: str, folder) -> nn.Module:
    """A toy model that knows the base classes, trained by the loop itself."""
    plan = Plan("pretrain", {"base": BASE}, (("learn", ("base",)),))
    trainer = make_trainer(
        DOMAINS[kind](), plan, "finetune", folder, steps=50, batch_size=32, lr=2e-2, gallery=0, train_head_rows=False
    )
    trainer.swap()
    return trainer.model.eval()
