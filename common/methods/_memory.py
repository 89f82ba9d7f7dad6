"""A small memory of old training items, by name, that a method draws its keep batches from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common import distributed
from common.domain import Domain
from common.exemplars import ExemplarConfig, Exemplars
from common.streams import Ordered


class Memory:
    """Which training items of which class are remembered, the same on every rank.

    Items are named as `Domain.item_names` names them; an image that shows two classes may be kept for both.

    logits: of every remembered item, as the model gave them when the item entered; for domains whose items are whole
        pictures.
    """

    def __init__(self, config: ExemplarConfig, domain: Domain, seed: int, batch_size: int) -> None:
        self.domain, self.batch_size = domain, batch_size
        self.exemplars = Exemplars(config, seed)
        self.logits: dict[str, Tensor] = {}

    def learn(self, model: nn.Module, classes: Sequence[str]) -> None:
        """Chooses among all training items of `classes`; classes known already keep the best they had."""
        names: list[str] = []
        labels: list[str] = []
        found: dict[str, Tensor] = {}
        logits: dict[str, Tensor] = {}
        for c in classes:
            own = self._embed(model, c)
            names += [name for name, *_ in own]
            labels += [c] * len(own)
            found |= {f"{c}\n{name}": z for name, z, _ in own}
            logits |= {f"{c}\n{name}": scores for name, _, scores in own}
        refs = [f"{c}\n{name}" for c, name in zip(labels, names, strict=True)]  # one item may stand for two classes
        self.exemplars.add(refs, labels, lambda items: torch.stack([found[i] for i in items]))
        self.logits = {ref: self.logits[ref] if ref in self.logits else logits[ref] for ref, _ in self.exemplars}

    def forget(self, classes: Sequence[str]) -> None:
        """Drops all that is remembered of `classes`."""
        self.exemplars.forget(classes)
        self.logits = {ref: scores for ref, scores in self.logits.items() if ref.partition("\n")[0] not in classes}

    def stored(self, names: Sequence[str], rows: Sequence[int]) -> Tensor:
        """[N, C] logits that items of these names and class rows had when they entered."""
        table = self.domain.classes.names
        return torch.stack([self.logits[f"{table[row]}\n{name}"] for name, row in zip(names, rows, strict=True)])

    @torch.no_grad()
    def _embed(self, model: nn.Module, name: str) -> list[tuple[str, Tensor, Tensor]]:
        """(item name, mean embedding and mean logits of what it shows of the class) of every training item of a class."""
        row = self.domain.classes.row(name)
        size = self.domain.size([name], train=True)
        stream = Ordered(0, self.batch_size, 0, distributed.rank(), distributed.world())
        found = self._items(model, name, row, stream)
        if found is None:  # several annotated items per image: one image at a time
            stream = Ordered(0, 1, 0, distributed.rank(), distributed.world())
            found = self._items(model, name, row, stream)
        assert found is not None, "one image always gives one mean"
        pairs = list(zip(stream.positions(size), found, strict=True))
        everything = sorted((p for part in distributed.gather(pairs) for p in part), key=lambda p: p[0])
        return [pair for _, pair in everything]

    def _items(self, model: nn.Module, name: str, row: int, stream: Ordered) -> list[tuple[str, Tensor, Tensor]] | None:
        result: list[tuple[str, Tensor, Tensor]] = []
        for batch in self.domain.loader([name], train=True, stream=stream):
            names = self.domain.item_names(batch)
            prediction = self.domain.predict(model, batch)
            z, labels = prediction.embedding.float().cpu(), prediction.labels.cpu()
            scores = prediction.scores.float().cpu()
            if len(names) == 1:
                own = [t[labels == row] if (labels == row).any() else t.new_zeros(1, t.shape[1]) for t in (z, scores)]
                result.append((names[0], own[0].mean(0), own[1].mean(0)))
            elif len(names) == len(labels):
                result += list(zip(names, z, scores, strict=True))
            else:
                return None
        return result

    def positions(self, classes: Sequence[str]) -> tuple[int, ...]:
        """Where the remembered items of `classes` stand in the loader of exactly these classes."""
        wanted = {ref.partition("\n")[2] for ref, c in self.exemplars if c in classes}
        size = self.domain.size(classes, train=True)
        stream = Ordered(0, self.batch_size, 0, distributed.rank(), distributed.world())
        names = [n for b in self.domain.loader(classes, train=True, stream=stream) for n in self.domain.item_names(b)]
        own = [p for p, n in zip(stream.positions(size), names, strict=True) if n in wanted]
        return tuple(sorted(p for part in distributed.gather(own) for p in part))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {**self.exemplars.state_dict(), "logits": self.logits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.exemplars.load_state_dict(state)
        self.logits = {ref: scores.cpu() for ref, scores in state["logits"].items()}
