"""Diffusion against diffusers' samplers, algebra of the prediction targets, and a mixture with a known denoiser."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from imtok.config import ConfigError
from imtok.generators.diffusion import (
    NUM_TRAIN_TIMESTEPS,
    Diffusion,
    DiffusionConfig,
    DiffusionSamplingConfig,
    NoisePath,
    Prediction,
    Spacing,
    gaussian_noise,
    predicted_clean_and_noise,
    prediction_target,
)
from imtok.generators.sampling import classifier_free_guidance

FLOW = DiffusionConfig(path="straight", prediction="velocity")


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def network(noisy: torch.Tensor, time: float) -> torch.Tensor:
    """An arbitrary function of both inputs, far from a good prediction."""
    return torch.sin(3 * noisy + time / 100) + 0.3 * noisy.roll(1, 1)


@pytest.mark.parametrize("steps", [1, 50, 250])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize(("ours", "theirs"), [("v", "v_prediction"), ("noise", "epsilon"), ("clean", "sample")])
def test_ddim_matches_diffusers(steps: int, spacing: Spacing, ours: Prediction, theirs: str) -> None:
    scheduler = DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type=theirs,
        timestep_spacing=spacing,
        clip_sample=False,
    )
    scheduler.set_timesteps(steps)
    # diffusers' own are in fp32, whose rounding the network amplifies.
    scheduler.alphas_cumprod = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    diffusion = Diffusion(DiffusionConfig(prediction=ours))
    assert diffusion.timesteps(steps, spacing) == [*scheduler.timesteps.tolist(), -1]
    theirs_now = noise(3, 5, 8).double()
    factor = 0.2 if ours == "noise" else 1.0  # dividing by alpha = .006 amplifies a wrong noise and its rounding
    for time in scheduler.timesteps:
        pred = factor * network(theirs_now, time.item())
        theirs_now = scheduler.step(pred, time, theirs_now, return_dict=False)[0]  # pyright: ignore[reportArgumentType]
    found = diffusion.sample(lambda x, time: factor * network(x, time), noise(3, 5, 8).double(), steps, spacing)
    tolerance = 1e-5 * theirs_now.abs().max().clamp_min(1.0).item()
    assert torch.allclose(found, theirs_now, atol=tolerance, rtol=0)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside the solver
@pytest.mark.parametrize("steps", [75, 150])
def test_steps_not_dividing_1000_step_to_the_next_visited_time(steps: int) -> None:
    """Matches diffusers' first-order DPM-Solver++, which is DDIM too; diffusers' DDIM visits the same times."""
    shared: dict[str, Any] = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    shared |= {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    ddim, solver = DDIMScheduler(**shared), DPMSolverMultistepScheduler(**shared, solver_order=1)
    diffusion, theirs = Diffusion(DiffusionConfig()), noise(3, 5, 8)
    for scheduler in (ddim, solver):
        scheduler.set_timesteps(steps)
        assert diffusion.timesteps(steps) == [*scheduler.timesteps.tolist(), -1]
    for time in solver.timesteps:
        theirs = solver.step(network(theirs, time.item()), time, theirs, return_dict=False)[0]
    found = diffusion.sample(network, noise(3, 5, 8), steps)
    assert torch.allclose(found, theirs, atol=1e-5 * theirs.abs().max().clamp_min(1.0).item(), rtol=0)
    assert diffusion.timesteps(steps, "leading")[0] == {75: 987, 150: 993}[steps]  # diffusers: 962 and 894


def test_rectified_flow_matches_the_euler_sampler_of_diffusers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1 - index / 20 for index in range(20)])
    theirs = noise(3, 5, 8)
    for time in scheduler.timesteps:
        theirs = scheduler.step(network(theirs, time.item()), time, theirs, return_dict=False)[0]  # pyright: ignore[reportArgumentType]
    assert torch.allclose(Diffusion(FLOW).sample(network, noise(3, 5, 8), 20), theirs, atol=1e-5)


@pytest.mark.parametrize("prediction", ["v", "noise", "clean", "velocity"])
@pytest.mark.parametrize("path", ["variance_preserving", "straight"])
def test_prediction_target_determines_clean_data_and_noise(path: NoisePath, prediction: Prediction) -> None:
    diffusion = Diffusion(DiffusionConfig(path=path))
    clean, added, times = noise(6, 4, 3), noise(2, 6, 4, 3)[1], torch.tensor([1.0, 20, 300, 600, 800, 990])
    alpha, sigma = (level[:, None, None].double() for level in diffusion.alpha_sigma(times))
    mixed = alpha * clean + sigma * added
    target = prediction_target(prediction, clean.double(), added.double(), alpha, sigma)
    found = predicted_clean_and_noise(prediction, mixed, target, alpha, sigma)
    for recovered, expected in zip(found, (clean, added), strict=True):
        assert torch.allclose(recovered, expected.double(), atol=1e-6)


def test_alpha_and_sigma_match_the_noise_schedule() -> None:
    alpha, sigma = Diffusion(DiffusionConfig()).alpha_sigma(torch.tensor([-1.0, 0, 999]))
    assert alpha.square().tolist() == pytest.approx([1, 1 - 1e-4, 4.0358e-5], rel=1e-4)
    assert (alpha.square() + sigma.square()).tolist() == pytest.approx([1, 1, 1])
    alpha, sigma = Diffusion(FLOW).alpha_sigma(torch.tensor([0.0, 250, 1000]))
    assert alpha.tolist() == [1, 0.75, 0]
    assert (alpha + sigma).tolist() == [1, 1, 1]


@pytest.mark.parametrize("config", [DiffusionConfig(), FLOW], ids=["ddim", "flow"])
def test_training_times_are_sampled_uniformly(config: DiffusionConfig) -> None:
    torch.manual_seed(0)
    times = Diffusion(config).sample_timesteps(20_000)
    assert 0 <= times.min() < 2
    assert 998 < times.max() <= NUM_TRAIN_TIMESTEPS
    assert times.mean() == pytest.approx(500, abs=10)
    assert times.std() == pytest.approx(1000 / 12**0.5, rel=0.02)


MEANS, WEIGHTS, WIDTH = torch.tensor([[-1.0, 0.5], [1.5, 1.0], [0.5, -2.0]]), torch.tensor([0.5, 0.3, 0.2]), 0.2


def expected_clean(noisy: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """Return the posterior mean of a Gaussian mixture's points given noisy ones: an optimal network's prediction."""
    variance = alpha**2 * WIDTH**2 + sigma**2
    offset = noisy[:, :, None] - alpha * MEANS  # batch, 1, components, 2
    responsibility = (WEIGHTS.log() - offset.square().sum(3) / (2 * variance)).softmax(2)
    component_mean = MEANS + alpha * WIDTH**2 / variance * offset
    return (responsibility[..., None] * component_mean).sum(2)


@pytest.mark.parametrize("config", [DiffusionConfig(), FLOW], ids=["ddim", "flow"])
def test_optimal_denoiser_recovers_the_data_distribution(config: DiffusionConfig) -> None:
    diffusion = Diffusion(config)

    def predict(noisy: torch.Tensor, time: float) -> torch.Tensor:
        alpha, sigma = (level.item() for level in diffusion.alpha_sigma(torch.tensor(time)))
        clean = expected_clean(noisy, alpha, sigma)
        added = (noisy - alpha * clean) / sigma
        return added - clean if config.prediction == "velocity" else alpha * added - sigma * clean

    samples = diffusion.sample(predict, noise(8000, 1, 2), 100)[:, 0]
    component = (samples[:, None] - MEANS).norm(dim=2).argmin(1)
    for index, (mean, weight) in enumerate(zip(MEANS, WEIGHTS, strict=True)):
        members = samples[component == index]
        assert len(members) / len(samples) == pytest.approx(weight.item(), abs=0.02)
        assert torch.allclose(members.mean(0), mean, atol=0.02)
        assert torch.allclose(members.T.cov(), torch.eye(2) * WIDTH**2, atol=0.006)


def test_guidance_rises_from_one_to_the_scale() -> None:
    config = DiffusionSamplingConfig(guidance_scale=3.8, guidance_schedule="power_cosine", guidance_power=4.0)
    assert config.scale(1000.0) == 1
    assert config.scale(0.0) == pytest.approx(3.8)
    assert config.scale(500.0) == pytest.approx(1 + 2.8 * 0.5 * (1 - torch.tensor(torch.pi / 16).cos().item()))
    scales = [config.scale(float(time)) for time in range(NUM_TRAIN_TIMESTEPS, -1, -10)]
    assert all(before <= after for before, after in itertools.pairwise(scales))
    later = dataclasses.replace(config, guidance_power=8.0)
    assert later.scale(300.0) < config.scale(300.0)
    assert {dataclasses.replace(config, guidance_schedule="constant").scale(time) for time in (0.0, 500.0, 1000.0)} == {
        3.8
    }


def test_guidance_of_one_is_conditional_and_of_zero_unconditional() -> None:
    conditional, unconditional = noise(2, 3, 8), noise(4, 3, 8)[2:]
    both = torch.cat([conditional, unconditional])
    assert torch.equal(classifier_free_guidance(both, 1.0), conditional)
    assert torch.equal(classifier_free_guidance(both, 0.0), unconditional)
    assert torch.allclose(
        classifier_free_guidance(both, 3.0), unconditional + 3 * (conditional - unconditional)
    )  # on all 8 channels


def test_noise_depends_only_on_the_seed() -> None:
    together = gaussian_noise([3, 4, 5], 6, 8)
    assert torch.equal(together[1:2], gaussian_noise([4], 6, 8))
    assert gaussian_noise([], 6, 8).shape == (0, 6, 8)
    many = gaussian_noise(range(500), 6, 8)
    assert many.mean() == pytest.approx(0, abs=0.03)
    assert many.std() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiffusionSamplingConfig(num_inference_steps=0), "num_inference_steps = 0 must be 1 to 1000"),
        (lambda: DiffusionSamplingConfig(num_inference_steps=10**6), "num_inference_steps = 1000000 must be 1 to 1000"),
        (lambda: DiffusionSamplingConfig(guidance_scale=float("nan")), "guidance_scale = nan must be finite"),
        (lambda: DiffusionSamplingConfig(guidance_power=0.0), "guidance_power = 0.0 must be positive"),
        (lambda: DiffusionSamplingConfig().replace(guidance_scale=(1.0, 2.0)), "2 guidance scales; latents have one"),
        (lambda: DiffusionSamplingConfig().replace(guidance_schedule="linear"), "'constant' or 'power_cosine'"),
        (lambda: DiffusionSamplingConfig().replace(num_inference_steps=12.5), "num_inference_steps: .* integer"),
        (lambda: DiffusionSamplingConfig().replace(temperature=1.0), "no setting of sampling is called temperature"),
        (lambda: DiffusionConfig(beta_end=1.0), "must rise within"),
        (lambda: DiffusionConfig(path="straight", prediction="noise"), "which then says nothing of data"),
    ],
)
def test_rejects_invalid_settings(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
