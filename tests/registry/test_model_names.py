"""Names of networks, and what is known of them without building them."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from kd.models.build import build
from kd.registry import models
from kd.runtime.torchvision_compat import import_torchvision


@pytest.mark.parametrize(
    ("name", "depth_or_width"), [("resnet26", 27), ("wrn_10_1", 7), ("wrn_16_4", 13), ("wrn_22_3", 19)]
)
def test_names_by_rule(name, depth_or_width):
    models.check(name)
    with torch.device("meta"):
        model = build(name, num_classes=10)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == depth_or_width
    if name.startswith("wrn"):
        assert model.feature_dim == 64 * int(name.split("_")[2])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ResNet34", "did you mean resnet34"),
        ("wrn16_2", "did you mean wrn_16_2"),
        ("resnet21", r"resnet<depth> with depth = 6n \+ 2"),
        ("resnet2", "unknown model"),
        ("wrn_12_1", r"wrn_<depth>_<width> with depth = 6n \+ 4"),
        ("wrn_4_1", "unknown model"),
        ("wrn_16_0", "unknown model"),
        ("", "unknown model"),
        (34, "named by a string"),
        (None, "named by a string"),
        ("torchvision:resnet19", "did you mean resnet1"),
        ("torchvision:", "it has alexnet"),
        ("torchvision:fcn_resnet50", "no classifier"),
        ("no_such_package.nets:small", "there is no module 'no_such_package.nets'"),
        ("kd.no_such_file:small", "there is no module 'kd.no_such_file'"),
        ("kd.models.wrn:WideResnet", "did you mean WideResNet"),
        ("kd.models.wrn:", "not of the form module:function"),
        ("../nets.py:small", "not of the form module:function"),
    ],
)
def test_unknown_names_are_refused(name, message):
    with pytest.raises(ValueError, match=message) as caught:
        models.check(name)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        build(name, num_classes=10)
    with pytest.raises(ValueError, match=message):
        models.source(name)


def test_sources():
    assert models.source("resnet18") == models.source("resnet50") == "kd.models.resnet"
    assert models.source("resnet26") == models.source("resnet8x4") == "kd.models.resnet_cifar"
    assert models.source("wrn_10_1") == "kd.models.wrn"
    assert models.source("torchvision:resnet18") == "kd.models.adapters"
    for name in models.MODELS:
        assert (Path(models.__file__).parents[2] / f"{models.source(name).replace('.', '/')}.py").is_file()


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="from 8x8 pixels on, not 4x4"):
        build("vgg8", num_classes=10, image_size=4)
    with pytest.raises(ValueError, match="num_classes of model 'vgg8' is 0"):
        build("vgg8", num_classes=0)
    with pytest.raises(ValueError, match="in_channels of model 'vgg8' is '3'"):
        build("vgg8", num_classes=10, in_channels="3")


def test_names_are_checked_without_torch(tmp_path):
    package = tmp_path / "heavy"
    package.mkdir()
    (package / "__init__.py").write_text("import torch\n")
    (package / "nets.py").write_text("import torch\ndef small(**sizes): ...\n")
    script = """
        import sys
        from kd.registry import models
        for name in ("wrn_10_1", "torchvision:resnet18", "heavy.nets:small"):
            models.check(name)
            models.source(name), models.map_shapes(name, 32), models.has_batchnorm(name)
        assert not {"torch", "torchvision", "heavy"} & set(sys.modules), "imported"
    """
    environment = {"PYTHONPATH": f"{Path(models.__file__).parents[2]}:{tmp_path}"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# --- batch normalisation, as teachers of data-free methods need

TORCHVISION = (  # one of each family, and both kinds of VGG
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "resnet18"),
    *("resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_0", "swin_t", "swin_v2_t", "vgg11", "vgg11_bn"),
    *("vit_b_16", "wide_resnet50_2"),
)


def normalises(network: nn.Module) -> bool:
    return any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("name", models.MODELS)
def test_batchnorm_of_kds_networks_is_known(name):
    with torch.device("meta"):
        assert models.has_batchnorm(name) is normalises(build(name, num_classes=2))


@pytest.mark.parametrize("name", TORCHVISION)
def test_batchnorm_of_torchvisions_networks_is_known(name):
    settings = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("cpu" if name.startswith("regnet") else "meta"):  # RegNet computes its widths with tensors
        network = import_torchvision().models.get_model(name, weights=None, **settings)
    assert models.has_batchnorm(f"torchvision:{name}") is normalises(network)


def test_every_family_of_torchvision_is_among_the_built_ones():
    for families in (models.WITH_BATCHNORM, models.WITHOUT_BATCHNORM):
        assert all(any(name.startswith(family) for name in TORCHVISION) for family in families)
    known = models.builders(Path(import_torchvision().__file__).parent)
    assert len(known) > 70
    assert [name for name in known if models.has_batchnorm(f"torchvision:{name}") is None] == []


def test_batchnorm_of_other_networks_is_not_known():
    for name in ("mine:net", "torchvision:new_family", "resnet9"):
        assert models.has_batchnorm(name) is None
    assert models.has_batchnorm("resnet26")
