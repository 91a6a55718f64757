"""A mistake in the settings gives a line: the key, what came, what is allowed."""

import pytest
from settings_cases import DROP, KINDS, adversarial, distilled, faults_of

from kd.settings.merging import merge

MISTAKES = [
    # a key that is unknown or missing, at each level
    ({"trainning": {}}, "top level", "'trainning'", "did you mean 'training'?"),
    ({"dataset": {"size": 3}}, "dataset", "'size'", "image_size"),
    ({"teacher": {"models": "vgg8"}}, "teacher", "'models'", "did you mean 'model'?"),
    ({"teacher": {"training": {"lrr": 0.1}}}, "teacher.training", "'lrr'", "did you mean 'lr'?"),
    ({"distillation": {"training": {"epoch": 1}}}, "distillation.training", "'epoch'", "did you mean 'epochs'?"),
    ({"student": {"width": 2}}, "student", "'width'", "allowed: model"),
    ({"replay": {"alhpa": 0.1}}, "replay", "'alhpa'", "did you mean 'alpha'?"),
    ({"compute": {"cpus": 2}}, "compute", "'cpus'", "threads"),
    ({"tracking": {"url": "x"}}, "tracking", "'url'", "did you mean 'uri'?"),
    ({"compute": {"compile": False}}, "compute.compile", "False", "YAML reads off as false: write 'off'"),
    ({"compute": {"capture": True}}, "compute.capture", "True", "allowed: auto, off"),
    ({1: 2}, "top level", "1", "allowed: "),
    ({"kind": DROP}, "top level", "'kind'", "missing"),
    ({"inversion": {"source": DROP}}, "inversion", "'source'", "missing"),
    ({"inversion": {"generator": {"lr_noize": 1.0}}}, "inversion.generator", "'lr_noize'", "did you mean 'lr_noise'?"),
    ({"inversion": {"source": "generators"}}, "inversion.source", "'generators'", "did you mean 'generator'?"),
    ({"inversion": {"generator": {"steps": 0}}}, "inversion.generator.steps", "0", ">= 1"),
    ({"inversion": {"generator": {"meta": "sgd"}}}, "inversion.generator.meta", "'sgd'", "maml, reptile"),
    ({"inversion": {"original": {"steps": 1}}}, "inversion.original", "'steps'", "unknown key"),
    ({"distillation": {"training": {"lr": DROP}}}, "distillation.training", "'lr'", "missing"),
    ({"objective": {"ce": {"weight": DROP}}}, "objective.ce", "'weight'", "missing"),
    # a value of another type
    ({"training": {"lr": "1e-3"}}, "training.lr", "'1e-3' (text)", "write 0.001, not 1e-3"),
    ({"replay": {"eps": "1e-6"}}, "replay.eps", "'1e-6' (text)", "write 0.001, not 1e-3"),
    ({"teacher": {"training": {"lr": "1e-3"}}}, "teacher.training.lr", "'1e-3' (text)", "write 0.001"),
    ({"training": {"lr": "fast"}}, "training.lr", "'fast' (text)", "allowed: number"),
    ({"training": {"epochs": "20"}}, "training.epochs", "'20' (text)", "integer"),
    ({"training": {"epochs": 1.5}}, "training.epochs", "1.5 (number)", "integer"),
    ({"training": {"epochs": True}}, "training.epochs", "True (boolean)", "integer"),
    ({"training": {"lr": False}}, "training.lr", "False (boolean)", "number"),
    ({"scale": True}, "scale", "True (boolean)", "number"),
    ({"teacher": {"seed": False}}, "teacher.seed", "False (boolean)", "integer or null"),
    ({"objective": {"ce": {"weight": True}}}, "objective.ce.weight", "True (boolean)", "number"),
    ({"training": {"lr": None}}, "training.lr", "null", "number"),
    ({"training": {"milestones": [1, None]}}, "training.milestones.1", "null", "integer"),
    ({"training": None}, "training", "null", "a mapping"),
    ({"methods": None}, "methods", "null", "a mapping"),
    ({"training": [1, 2]}, "training", "a list", "a mapping"),
    ({"objective": ["ce"]}, "objective", "a list", "a mapping"),
    ({"objective": {"ce": 1.0}}, "objective.ce", "1.0 (number)", "a mapping"),
    ({"training": {"milestones": 5}}, "training.milestones", "5 (integer)", "a list"),
    ({"training": {"milestones": {"a": 1}}}, "training.milestones", "a mapping", "a list"),
    ({"modulation": {"gradient": "yes"}}, "modulation.gradient", "'yes' (text)", "boolean"),
    ({"modulation": {"gradient": 1}}, "modulation.gradient", "1 (integer)", "boolean"),
    ({"student": {"model": 18}}, "student.model", "18 (integer)", "text"),
    ({"dataset": {"name": None}}, "dataset.name", "null", "text"),
    ({"tracking": {"uri": 5000}}, "tracking.uri", "5000 (integer)", "text or null"),
    # out of range, or not one of a few words
    ({"training": {"epochs": 0}}, "training.epochs", "0", ">= 1"),
    ({"training": {"batch_size": 1}}, "training.batch_size", "1", ">= 2"),
    ({"training": {"lr": 0}}, "training.lr", "0", "> 0"),
    ({"training": {"gamma": 1.5}}, "training.gamma", "1.5", "<= 1"),
    ({"training": {"momentum": 1}}, "training.momentum", "1", "< 1"),
    ({"training": {"milestones": [2, 2]}}, "training.milestones", "[2, 2]", "once"),
    ({"scale": 0}, "scale", "0", "> 0"),
    ({"scale": 1.01}, "scale", "1.01", "<= 1"),
    ({"dataset": {"validation": 1}}, "dataset.validation", "1", "< 1"),
    ({"dataset": {"image_size": 4}}, "dataset.image_size", "4", ">= 8"),
    ({"modulation": {"diversity": -0.5}}, "modulation.diversity", "-0.5", ">= 0"),
    ({"objective": {"ce": {"weight": -1}}}, "objective.ce.weight", "-1", ">= 0"),
    ({"teacher": {"seed": -1}}, "teacher.seed", "-1", ">= 0"),
    ({"compute": {"checkpoint_seconds": 0}}, "compute.checkpoint_seconds", "0", "> 0"),
    ({"kind": "distil"}, "kind", "'distil'", "did you mean 'distill'?"),
    ({"precision": "float16"}, "precision", "'float16'", "float32, bf16"),
    ({"training": {"schedule": "step"}}, "training.schedule", "'step'", "did you mean 'steps'?"),
    ({"replay": {"refresh": None}}, "replay.refresh", "None", "drawn, all"),
    ({"compute": {"device": "gpu"}}, "compute.device", "'gpu'", "cuda"),
    ({"methods": {"a b": {}}}, "methods", "'a b'", "A-Za-z0-9"),
    ({"methods": {"../x": {}}}, "methods", "'../x'", "A-Za-z0-9"),
    ({"results": ""}, "results", "''", "at least 1"),
    # what only models, data sets and losses know
    ({"student": {"model": "resnet35"}}, "student.model", "'resnet35'", "did you mean"),
    ({"teacher": {"model": "wrn_15_2"}}, "teacher.model", "'wrn_15_2'", "depth = 6n + 4"),
    ({"student": {"model": ""}}, "student.model", "''", "allowed are"),
    ({"student": {"model": "no_such_module:build"}}, "student.model", "'no_such_module'", "install it"),
    ({"dataset": {"name": "digit"}}, "dataset.name", "'digit'", "did you mean 'digits'?"),
    ({"objective": {"cee": {"weight": 1}}}, "objective.cee", "unknown loss", "did you mean 'ce'?"),
    (
        {"kind": "distill", "objective": {"kd": {"weight": 1, "temprature": 2.0}}},
        "objective.kd.temprature",
        "unknown key",
        "did you mean 'temperature'?",
    ),
    ({"objective": {"ce": {"weight": 1, "smoothing": 0.1}}}, "objective.ce.smoothing", "unknown key", "weight"),
    ({"training": {"milestones": [5, 10]}}, "training.milestones", "10", "below epochs (10)"),
    ({"teacher": {"training": {"epochs": 4}}}, "teacher.training.milestones", "4", "below epochs (4)"),
    ({"distillation": {"training": {"epochs": 4}}}, "distillation.training.milestones", "4", "below epochs (4)"),
    ({"training": {"nesterov": True, "momentum": 0.0}}, "training.nesterov", "momentum 0", "raise the momentum"),
    ({"objective": {"ce": {"weight": 0}}}, "objective", "every weight is 0", "above 0"),
    ({"objective": {"ce": DROP}}, "objective", "{}", "at least 1"),
    ({"objective": {"kd": {"weight": 1}}}, "objective.kd", "kind is train", "set kind: distill"),
    (merge(KINDS["datafree"], {"dataset": {"image_size": 18}}), "dataset.image_size", "18", "multiple of 4"),
    (merge(KINDS["datafree"], {"replay": {"with_replacement": False}}), "replay.with_replacement", "0.6", "alpha: 0"),
    (
        merge(KINDS["datafree"], {"distillation": {"steps": 400, "rounds": 60}}),
        *("distillation.rounds", "got 60", "distillation.steps (400), so that every round has as many; set rounds: 20"),
    ),
    (merge(KINDS["datafree"], {"distillation": {"rounds": 0}}), "distillation.rounds", "0", ">= 1"),
    (adversarial(adv=0.0), "inversion.adversarial", "every weight is 0", "adv, oh, activation, balance, bn above 0"),
    (adversarial(balance=-1.0), "inversion.adversarial.balance", "-1.0", ">= 0"),
    (adversarial(batches=0), "inversion.adversarial.batches", "0", ">= 1"),
    (
        merge(adversarial(batches=5), {"replay": {"full_size": 128}}),
        *(
            "replay.full_size",
            "got 128 at scale 0.5; inversion.adversarial makes 1280 images a round",
            "set full_size: 2560",
        ),
    ),
    (adversarial(meta="maml"), "inversion.adversarial", "'meta'", "width"),
    (
        merge(adversarial(bn=1.0), {"teacher": {"model": "torchvision:alexnet"}}),
        *("teacher.model", "torchvision:alexnet has no batch normalisation", "inversion.source adversarial"),
    ),
    (
        merge(KINDS["datafree"], {"teacher": {"model": "torchvision:alexnet"}}),
        *("teacher.model", "torchvision:alexnet has no batch normalisation", "take another teacher"),
    ),
    (
        distilled("simkd", teacher=["wrn_16_2", "wrn_16_1"]),
        "teacher.model",
        "got 2 networks",
        "objective.simkd takes over",
    ),
    ({"student": {"view": "luminance"}}, "student.view", "'luminance'", "take view: rgb"),
    (merge(KINDS["distill"], {"teacher": {"view": "luminance"}}), "teacher.view", "'luminance'", "take view: rgb"),
    (
        {"student": {"view": "chrominance"}, "dataset": {"name": "fashion_mnist"}},
        *("student.view", "'chrominance'", "take view: rgb"),
    ),
    # settings of losses out of range, by themselves, together, or for these networks
    *(
        (distilled(loss, **{key: value}), f"objective.{loss}.{key}", str(value), allowed)
        for loss, key, value, allowed in [
            ("kd", "temperature", 0, "above 0"),
            ("dkd", "temperature", -1.0, "above 0"),
            ("dkd", "beta", -1.0, "at least 0"),
            ("dist", "temperature", 0.0, "above 0"),
            ("dist", "gamma", -0.5, "at least 0"),
            ("crd", "negatives", 0, "at least 1"),
            ("crd", "feat_dim", -1, "at least 1"),
            ("crd", "tau", 0, "above 0"),
            ("crd", "momentum", 1, "at least 0 and below 1"),
            ("rkd", "angle_weight", -1, "at least 0"),
            ("cc", "feat_dim", 0, "at least 1"),
            ("fitnet", "layer", -1, "at least 0"),
            ("at", "p", 0, "at least 1"),
            ("vid", "eps", -1, "above 0"),
            ("vid", "init_pred_var", 0.000001, "above eps"),
            ("kdsvd", "k", 0, "at least 1"),
            ("reviewkd", "max_mid_width", 0, "at least 1"),
            ("simkd", "factor", 0, "at least 1"),
            ("ab", "first_epochs", -1, "at least 0"),
            ("ab", "margin", 0.0, "above 0"),
            ("ft", "first_epochs", -1, "at least 0"),
            ("ft", "first_lr", 0, "above 0"),
            ("ft", "factor_rate", 0, "above 0"),
            ("fsp", "first_epochs", -1, "at least 0"),
        ]
    ),
    *(
        (distilled("crd", positive="relax", **{key: value}), "objective.crd.positive", "'relax'", f"exact when {key}")
        for key, value in [("memory", "queue"), ("negatives_from", "other_indices")]
    ),
    (distilled("vid", eps=6.0), "objective.vid.init_pred_var", "5.0", "above eps"),
    (distilled("kdsvd", teacher="wrn_16_1", k=99), "objective.kdsvd", "no 99 singular vectors", "choose a smaller k"),
    (distilled("simkd", factor=129), "objective.simkd", "129", "from 1 to 128"),
    (distilled("ft", factor_rate=0.001), "objective.ft", "0.001", "at least 1 of 128 channels"),
    (distilled("fitnet", layer=4), "objective.fitnet", "no layer 4", "choose a layer from 0 to 3"),
    # the type of a setting before what it does to the networks
    (distilled("fitnet", layer="2"), "objective.fitnet.layer", "'2' (text)", "allowed: integer"),
    (distilled("fitnet", layer=None), "objective.fitnet.layer", "null", "allowed: integer"),
    (distilled("fitnet", layer=1.5), "objective.fitnet.layer", "1.5 (number)", "allowed: integer"),
    (distilled("crd", negatives="many"), "objective.crd.negatives", "'many' (text)", "allowed: integer"),
]


@pytest.mark.parametrize(
    ("override", "key", "came", "allowed"), MISTAKES, ids=[f"{row[1]}-{row[2]}" for row in MISTAKES]
)
def test_a_mistake_is_named_with_what_came_and_what_is_allowed(override, key, came, allowed):
    lines = faults_of(override)
    own = [line for line in lines if line.startswith(f"my.yaml: {key}: ")]
    assert own, lines
    assert any(came in line and allowed in line for line in own), lines
