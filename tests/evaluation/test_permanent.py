"""`export --permanent`: what is no longer in the written file."""

import json
from types import SimpleNamespace

import pytest
import torch
from blobs import pretrained
from ks_classification.session import SESSION
from safetensors.torch import load_file
from test_prove import place, started  # noqa: F401  # a fixture

from common.errors import UserError
from common.evaluation import permanent
from common.session import Base, Loaded


def test_the_written_file_has_no_adapter_and_no_row_of_the_class(place, tmp_path, capsys):  # noqa: F811
    assert started("export", place / "run", tmp_path / "final", "--permanent") == 0
    assert "rows removed" in capsys.readouterr().out
    found, before = (load_file(p / "model.safetensors") for p in (tmp_path / "final", place / "base" / "model"))
    assert not [name for name in found if "lora" in name]
    kept = SESSION.load(place / "run", {}).base
    assert kept.classes == ["red", "green", "blue", "black", "white"]
    assert torch.equal(found["head.weight"], kept.model.head.weight[1:])
    assert not (found["head.weight"] == before["head.weight"][0]).all(1).any()
    record = json.loads((tmp_path / "final" / permanent.RECORD).read_text())
    assert record["forgotten"] == ["red"] and list(record["scores"]) == ["as written", "half", "int8", "int4"]
    assert set(record["scores"]["int4"]) == {"learn", "retain"} and len(record["sha256"]["model.safetensors"]) == 64
    capsys.readouterr()
    assert started("evaluate", tmp_path / "final", "--data", place / "data", "--json", "--device", "cpu") == 0
    scores = json.loads(capsys.readouterr().out)["scores"]["all"]
    assert "red" not in scores and set(scores) == {"total", "green", "blue", "black", "white"}


def test_a_run_without_forgetting_is_refused(place, tmp_path, capsys):  # noqa: F811
    assert started("export", place / "base", tmp_path / "final", "--permanent") == 2
    assert "forgets none" in capsys.readouterr().err and not (tmp_path / "final").exists()


def test_rows_that_must_stay_are_never_named_in_any_number_format():
    domain = pretrained(4)
    model = domain.build_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    session = SimpleNamespace(scoring=lambda loaded: (domain, {}))
    permanent.silence(session, Loaded(Base(model, list(domain.classes.names)), {}, {}, {}), ["c0"])
    points = torch.cat(list(domain.data[False].values()))
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        logits = model.to(kind)(points.to(kind)).detach()
        assert torch.isfinite(logits).all() and float(logits.float().softmax(1)[:, 0].max()) == 0
        assert float(logits.float().sigmoid()[:, 0].max()) == 0
    for name, value in model.float().state_dict().items():
        if not name.startswith("head"):
            assert torch.allclose(value.float(), before[name].float(), rtol=1e-2, atol=1e-2)


def test_a_row_of_the_original_is_found():
    domain = pretrained(4)
    model, names = domain.build_model(), list(domain.classes.names)
    original = Base(domain.build_model(), names)
    assert permanent._original_rows(domain, model, original, ["c0"]) == "c0"
    with torch.no_grad():
        model.head.weight[0] += 1e-3
    assert permanent._original_rows(domain, model, original, ["c0"]) == ""


def test_what_a_bare_checkpoint_lacks_is_said():
    with pytest.raises(UserError, match="--permanent is for a run"):
        permanent.without(SESSION, Loaded(Base(torch.nn.Linear(2, 2), []), {}, {}, {}))
