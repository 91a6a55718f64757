"""The modulating function against its formula, its neutral settings, and its edges."""

from dataclasses import replace

import pytest
import torch

from kd.inversion.modulation import modulation
from kd.settings.shapes import Modulation

SETTINGS = Modulation(diversity=0.7, gamma=2.0, class_of="prediction", gradient=False, normalise=False)
CONFIDENCE = torch.tensor([0.1, 0.95, 0.5, 0.75, 0.999])
SHARE = torch.tensor([0.0, 0.5, 0.1, 1.0, 0.25])


def phi(confidence=CONFIDENCE, share=SHARE, **settings):
    return modulation(confidence, share, replace(SETTINGS, **settings))


def slow(diversity, gamma):
    values = zip(CONFIDENCE.tolist(), SHARE.tolist(), strict=True)
    return [(1 - diversity * share) * (1 - confidence) ** gamma for confidence, share in values]


@pytest.mark.parametrize("diversity", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_phi_is_its_formula(diversity, gamma):
    expected = torch.tensor(slow(diversity, gamma))
    torch.testing.assert_close(phi(diversity=diversity, gamma=gamma), expected, rtol=1e-3, atol=1e-9)


def test_neutral_settings_switch_each_factor_off():
    assert torch.equal(phi(diversity=0.0, gamma=0.0), torch.ones(5))
    torch.testing.assert_close(phi(gamma=0.0), 1 - 0.7 * SHARE)
    torch.testing.assert_close(phi(diversity=0.0), (1 - CONFIDENCE) ** 2)
    torch.testing.assert_close(phi(share=torch.zeros(5)), (1 - CONFIDENCE) ** 2)  # an empty buffer


def test_crowded_classes_and_easy_samples_count_less():
    shares, confidences = torch.linspace(0, 1, 9), torch.linspace(0, 0.99, 9)
    assert (phi(torch.full((9,), 0.5), shares).diff() < 0).all()
    assert (phi(confidences, torch.full((9,), 0.5)).diff() < 0).all()


def test_gradient_flows_only_on_request():
    confidence = CONFIDENCE.clone().requires_grad_()
    assert not phi(confidence).requires_grad
    assert not phi(confidence, normalise=True).requires_grad
    (gradient,) = torch.autograd.grad(phi(confidence, gradient=True).sum(), confidence)
    torch.testing.assert_close(gradient, -2 * (1 - CONFIDENCE) * (1 - 0.7 * SHARE))


def test_normalised_phi_has_mean_one_and_the_same_proportions():
    normalised = phi(normalise=True)
    assert normalised.mean().item() == pytest.approx(1, rel=1e-6)
    torch.testing.assert_close(normalised * phi().mean(), phi())


def test_normalised_gradient_takes_the_mean_for_a_constant():
    confidence = CONFIDENCE.clone().requires_grad_()
    (plain,) = torch.autograd.grad(phi(confidence, gradient=True).sum(), confidence)
    (gradient,) = torch.autograd.grad(phi(confidence, gradient=True, normalise=True).sum(), confidence)
    torch.testing.assert_close(gradient, plain / phi().mean())


def test_normalised_phi_of_a_batch_of_sure_samples_has_mean_one():
    sure = torch.tensor([0.99995, 0.99996, 0.99997])
    assert phi(sure, torch.zeros(3), gamma=3.0, normalise=True).mean().item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("normalise", [False, True])
def test_full_confidence_and_a_full_class_stay_finite(gamma, normalise):
    confidence = torch.tensor([1.0, 0.5, 1.0]).requires_grad_()
    settings = {"gamma": gamma, "diversity": 1.0, "gradient": True, "normalise": normalise}
    for share in (torch.tensor([0.2, 0.3, 1.0]), torch.ones(3)):
        values = phi(confidence, share, **settings)
        assert values.isfinite().all()
        assert torch.autograd.grad(values.sum(), confidence)[0].isfinite().all()
    if gamma:
        assert phi(confidence, torch.zeros(3), **settings)[0].item() < 1e-5
