"""A first optimiser step imports no compiler, and steps as torch's own does."""

import subprocess
import sys

import pytest
from conftest import ROOT

STEPS = """
import sys
import torch
if sys.argv[1] == "quick":
    import kd.runtime.quick_optimisers
for kind, options in ((torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}), (torch.optim.Adam, {})):
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    optimizer = kind(layer.parameters(), lr=0.1, fused=True, **options)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        layer(torch.rand(4, 3)).square().sum().backward()
        optimizer.step()
    print([value.hex() for value in layer.weight.flatten().tolist()], layer.weight.requires_grad)
print("dynamo" if "torch._dynamo" in sys.modules else "quick")
"""


@pytest.fixture(scope="module")
def printed() -> dict[str, list[str]]:
    def run(how: str) -> list[str]:
        command = [sys.executable, "-c", STEPS, how]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()

    return {how: run(how) for how in ("quick", "plain")}


def test_the_steps_are_torchs_to_the_last_bit(printed: dict[str, list[str]]) -> None:
    assert printed["quick"][:2] == printed["plain"][:2]


def test_no_compiler_is_imported(printed: dict[str, list[str]]) -> None:
    assert printed["quick"][-1] == "quick"
