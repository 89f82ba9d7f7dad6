"""The published command lines, settings and plans of detection."""

from pathlib import Path

from ks_detection.cl_detr import ForgettingConfig, forgetting_plan
from ks_detection.data.coco_names import COCO
from ks_detection.models.detectors import available, config_from
from ks_detection.models.parts.config_file import read_config
from ks_detection.published import tidy
from ks_detection.session import SESSION
from ks_detection.view import ImageConfig

from common.plan_file import PlanConfig, read_plan
from common.run_flags import parsed

FOLDER = Path(__file__).parents[2] / "object-detection"


def test_published_command_lines_are_understood(capsys):
    published = (
        "-c config.py --options dn_scalar=100 dn_box_noise_scale=1.0 --pretrain_model_path x.pth --lora_rank 8 "
        "--lora_pos FFN --remain_path r --forget_path f --learn_path l --output_dir o --save_log --find_unused_params --amp"
    )
    ours = (
        "--config-file config.py --checkpoint x.pth --lora-rank 8 --retain-data r --forget-data f --learn-data l "
        "--output-dir o --precision fp16"
    )
    assert tidy(published.split()) == [*ours.split(), "--options", "dn_scalar=100 dn_box_noise_scale=1.0"]
    assert "without effect here: --lora_pos, --save_log, --find_unused_params" in capsys.readouterr().err
    continual = "--resume=x.pth --no_aux_loss --cl_beta_list 0.1 0.2 --options num_select=5 --learn -1"
    assert tidy(continual.split()) == (
        [
            "--checkpoint",
            "x.pth",
            "--forget-weights",
            "0.1,0.2",
            "--learn",
            "-1",
            "--options",
            "aux_loss=False num_select=5",
        ]
    )
    assert tidy(["run", "--lr=1e-3", "--json"]) == ["run", "--lr=1e-3", "--json"] and not capsys.readouterr().err


def test_plans_on_coco_have_the_published_class_order():
    names = [COCO[number] for number in sorted(COCO)]
    numbers = {name: number for number, name in COCO.items()}
    plan = read_plan(FOLDER / "configs" / "plans" / "gs_lora_coco_7x10.yaml", names)
    assert [numbers[name] for name in plan.groups["forget1"]] == [78, 41, 28, 52, 37, 84, 53, 63, 19, 76]
    assert [numbers[name] for name in plan.groups["retain"]] == [74, 64, 65, 5, 79, 59, 36, 88, 9, 49]
    assert len(plan.phases) == 7 and len(plan.phases[0].keep) == 70
    flags = ForgettingConfig(num_of_first_cls=70, cls_per_phase=10, num_tasks=7, seed_cls=123)
    assert forgetting_plan(flags, PlanConfig(), names).phases == plan.phases
    single = read_plan(FOLDER / "configs" / "plans" / "gs_lora_coco_80_10.yaml", names)
    assert single.groups["forget"] == plan.groups["forget1"] and len(single.phases) == 1
    assert forgetting_plan(ForgettingConfig(num_of_first_cls=70), PlanConfig(), names).phases == single.phases
    assert forgetting_plan(ForgettingConfig(), PlanConfig(), names) is None


def test_every_shipped_config_builds_and_the_published_settings_parse():
    kinds = {config_from(read_config(path)).modelname for path in (FOLDER / "configs").glob("*.py")}
    assert kinds == set(available()) - {"hub"}  # which has folders of its own
    flags = ["--config", str(FOLDER / "configs" / "cl_detr.yaml")]
    settings = parsed(SESSION, "swap", flags)
    method, chosen = settings.method_config, settings[ImageConfig]
    expected = (15, 3e-4, "class", 1)
    assert (method.bound, method.sparsity_weight, chosen.forget_part, settings.lora.lora_alpha) == expected
    for method in ("rehearsal", "gradient_ascent", "ewc", "mas", "l2"):  # flags of the file's own method are left out
        others = [*flags, "--method", method, "--num-tasks", "1"]
        settings = parsed(SESSION, "swap", others)
        assert settings[ImageConfig].mixed == "remove" and settings[ForgettingConfig].num_tasks == 1
        assert "bound" not in settings.flags
    published = parsed(SESSION, "swap", ["--reference"])
    assert published.train.seed == 42 and published.method_config.learn_weight == 0.9
    assert published[ImageConfig].mixed == "remove"
