import numpy as np
import pytest
import torch
import torch.nn.functional as F
from close import assert_close, assert_within
from torch import nn

import forwardinf as fi
from forwardinf.core.fingerprint import row_digest
from forwardinf.data.noise import belonging_to, normal

ALPHAS = torch.linspace(0.999, 0.01, 100)
IMAGES = torch.rand(4, 2, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
SAME = "the same float32 forward; float64 from its output on"


class Linear(nn.Module):
    """A denoiser small enough to write down: a scale for each channel, and a bias that grows with time."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.7, -0.3]))
        self.bias = nn.Parameter(torch.tensor(0.01))

    def forward(self, noisy, timestep):
        return self.scale.view(1, -1, 1, 1) * noisy + self.bias * timestep.view(-1, 1, 1, 1)


@torch.no_grad()
def by_hand(model, images, target, timesteps, noises=1, weighting=None, flip=False):
    """The loss from its definition, one image, timestep and draw at a time, noise keyed by the image alone."""
    found = []
    for image in images:
        total = 0.0
        for step, weight in zip(timesteps, weighting or [1.0] * len(timesteps), strict=True):
            alpha = float(ALPHAS[step])
            for draw in range(noises):
                noise = noise_of(image, step * noises + draw)
                for view in [image, image.flip(-1)] if flip else [image]:
                    noisy = alpha**0.5 * view + (1 - alpha) ** 0.5 * noise
                    output = model(noisy[None], torch.tensor([step]))[0]
                    want = {"epsilon": noise, "sample": view,
                            "v_prediction": alpha**0.5 * noise - (1 - alpha) ** 0.5 * view}[target]  # fmt: skip
                    total += weight * float(((output.double() - want.double()) ** 2).mean())
        found.append(total / (len(timesteps) * noises * (2 if flip else 1)))
    return torch.tensor(found, dtype=torch.float64)


def noise_of(image, draw):
    """The noise that belongs to an image's content, under seed 0."""
    with belonging_to([row_digest(image)], 0):
        return normal(image.shape, size=1, draw=draw)[0]


@torch.no_grad()
def read(task, batch, model=None):
    return task.loss(model or Linear(), batch)


@pytest.mark.parametrize("target", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("settings", [{}, {"noises": 3}, {"weighting": [2.0, 0.5]}, {"flips": "mean"}])
def test_the_loss_is_the_mean_squared_error_of_what_is_predicted(target, settings):
    task = fi.Diffusion(ALPHAS, timesteps=[10, 60], target=target, **settings)
    plain = {name: value for name, value in settings.items() if name != "flips"}
    want = by_hand(Linear(), IMAGES, target, [10, 60], flip="flips" in settings, **plain)
    assert_close(read(task, IMAGES), want, rtol=1e-6, why=SAME)
    assert read(task, IMAGES).dtype == torch.float64


def test_timesteps_may_be_a_number_spread_evenly():
    assert fi.Diffusion(ALPHAS, timesteps=4).timesteps == [12, 37, 62, 87]
    assert fi.Diffusion(ALPHAS, timesteps=1).timesteps == [50]
    assert fi.Diffusion(ALPHAS).timesteps == fi.Diffusion(ALPHAS, timesteps=8).timesteps


def test_an_images_noise_is_the_same_in_any_batch_and_at_any_reading():
    task = fi.Diffusion(ALPHAS, timesteps=[10, 60], noises=2)
    whole = read(task, IMAGES)
    assert torch.equal(read(task, IMAGES), whole)
    assert_close(torch.cat([read(task, image[None]) for image in IMAGES]), whole, rtol=1e-6, why=SAME)
    assert_close(read(task, IMAGES.flip(0)), whole.flip(0), rtol=1e-6, why=SAME)


def test_shared_noise_is_the_same_for_all_images_and_other_for_another_seed():
    model, task = Linear(), fi.Diffusion(ALPHAS, timesteps=[10, 60], noise="shared")
    with belonging_to([b"shared"] * 4, seed=0):
        noise = normal(IMAGES.shape[1:], size=4, draw=10)
    assert torch.equal(noise[0], noise[3])
    with belonging_to([b"a", b"b", b"c", b"d"], seed=0):
        whole = task.loss(model, IMAGES)
    with belonging_to([b"z"], seed=0):
        alone = task.loss(model, IMAGES[2:3])
    with belonging_to([b"z"], seed=1):
        other = task.loss(model, IMAGES[2:3])
    assert torch.equal(whole[2:3], alone)
    assert not torch.equal(alone, other)
    assert not torch.equal(alone, task.varied(noise="own").loss(model, IMAGES[2:3]))


def test_an_exact_copy_has_share_one_whatever_else_its_row_holds():
    task = fi.Diffusion(ALPHAS, timesteps=[10, 60], latents=0)
    labels = torch.arange(4)
    scores = fi.attribute(Linear(), (IMAGES, labels), (IMAGES[1:2], labels[3:]), task=task, progress=False)
    assert_within(
        scores.share[0, 1:2], [1.0], atol=8 * float(scores.noise_floor[0] / scores.rise[0]), why="a copy has share 1"
    )
    other = fi.attribute(Linear(), (IMAGES, labels), (IMAGES[1:2], labels[3:]), task=task, progress=False, seed=1)
    assert not np.allclose(other.baseline, scores.baseline, rtol=1e-3), "another seed is other noise"


PLACES = {
    "the batch itself": (IMAGES, None),
    "the first column": ((IMAGES, torch.zeros(4)), None),
    "a list's first": ([IMAGES, torch.zeros(4)], None),
    "images": ({"images": IMAGES, "text": ["a"] * 4}, None),
    "image": ({"image": IMAGES}, None),
    "pixel_values": ({"pixel_values": IMAGES}, None),
    "latents": ({"latents": IMAGES}, None),
    "a name": ({"z": IMAGES, "images": torch.zeros(4)}, "z"),
    "a position": ((torch.zeros(4), IMAGES), 1),
}


@pytest.mark.parametrize("place", PLACES)
def test_images_are_found_in(place):
    batch, where = PLACES[place]
    task = fi.Diffusion(ALPHAS, timesteps=[10], latents=where)
    assert torch.equal(read(task, batch), read(fi.Diffusion(ALPHAS, timesteps=[10]), IMAGES))


def test_a_model_that_learns_its_variance_too_is_judged_by_its_mean():
    class Both(Linear):
        def forward(self, noisy, timestep):
            out = super().forward(noisy, timestep)
            return torch.cat([out, torch.full_like(out, 7.0)], 1)

    task = fi.Diffusion(ALPHAS, timesteps=[10])
    assert torch.equal(read(task, IMAGES, Both()), read(task, IMAGES))


def test_flips_are_the_mean_over_an_image_and_its_mirror_image():
    task = fi.Diffusion(ALPHAS, timesteps=[10], flips="mean")
    assert_close(read(task, IMAGES), by_hand(Linear(), IMAGES, "epsilon", [10], flip=True), rtol=1e-6, why=SAME)


BAD = {
    "no scheduler": ({"scheduler": None}, "Diffusion(scheduler=): expected a scheduler with alphas_cumprod"),
    "a scheduler without alphas": ({"scheduler": object()}, "got object"),
    "alphas of two dimensions": ({"scheduler": torch.zeros(2, 2)}, "Diffusion(scheduler=)"),
    "target misspelt": ({"target": "epsilom"}, "Did you mean 'epsilon'?"),
    "flips misspelt": ({"flips": "meen"}, "Did you mean 'mean'?"),
    "noise misspelt": ({"noise": "share"}, "Did you mean 'shared'?"),
    "no noises": ({"noises": 0}, "Diffusion(noises=)"),
    "a fraction of a noise": ({"noises": 1.5}, "Diffusion(noises=)"),
    "no timesteps": ({"timesteps": []}, "Diffusion(timesteps=)"),
    "zero timesteps": ({"timesteps": 0}, "Diffusion(timesteps=)"),
    "a timestep too late": ({"timesteps": [100]}, "from 0 to 99, got [100]"),
    "a timestep too early": ({"timesteps": [-1]}, "from 0 to 99, got [-1]"),
    "too few weights": ({"timesteps": [1, 2], "weighting": [1.0]}, "2 weights, got 1"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_setting_out_of_range_is_refused(bad):
    settings, message = BAD[bad]
    with pytest.raises(fi.SettingError) as caught:
        fi.Diffusion(**{"scheduler": ALPHAS, **settings})
    assert message in str(caught.value)


class Wrong(nn.Module):
    def forward(self, noisy, timestep):
        return noisy[:, :, :3]


BAD_BATCHES = {
    "images of whole numbers": ({}, (IMAGES * 100).to(torch.uint8), None, "got torch.uint8"),
    "no images": ({}, {"x": IMAGES}, None, "expected 'images' in the batch, got keys ['x']"),
    "no such name": (
        {"latents": "z"},
        {"x": IMAGES},
        None,
        "Diffusion(latents=): expected 'z' in the batch, got keys ['x']",
    ),
    "no such position": ({"latents": 4}, (IMAGES,), None, "Diffusion(latents=): expected 4 in the batch"),
    "no such condition": (
        {"condition": {"y": "label"}},
        {"images": IMAGES},
        None,
        "Diffusion(condition=): expected 'label'",
    ),
    "another shape": ({}, IMAGES, Wrong(), "expected output of shape (4, 2, 6, 6), got (4, 2, 3, 6)"),
}


@pytest.mark.parametrize("bad", BAD_BATCHES)
def test_a_batch_that_does_not_fit_says_what_is_wrong(bad):
    settings, batch, model, message = BAD_BATCHES[bad]
    with pytest.raises(fi.TaskError) as caught:
        read(fi.Diffusion(ALPHAS, timesteps=[10], **settings), batch, model)
    assert message in str(caught.value)


# -- with diffusers ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


def unet(diffusers, **more):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return diffusers.UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
            down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), **more,
        ).eval()  # fmt: skip


SMALL = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_a_schedulers_own_noising_and_target_are_used(diffusers, prediction):
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=50, prediction_type=prediction)
    model, task = unet(diffusers), fi.Diffusion(scheduler, timesteps=[5, 30])
    assert task.target == prediction
    want = torch.zeros(len(SMALL), dtype=torch.float64)
    with torch.no_grad():
        for step in (5, 30):
            noise = torch.stack([noise_of(image, step) for image in SMALL])
            times = torch.full((len(SMALL),), step)
            output = model(scheduler.add_noise(SMALL, noise, times), times).sample
            wanted = {"epsilon": noise, "sample": SMALL}.get(prediction)
            wanted = scheduler.get_velocity(SMALL, noise, times) if wanted is None else wanted
            want += F.mse_loss(output.double(), wanted.double(), reduction="none").mean((1, 2, 3)) / 2
    assert_close(read(task, SMALL, model), want, rtol=1e-5, why="float32 noising and forward, in another order")


def test_a_target_given_overrides_the_schedulers(diffusers):
    scheduler = diffusers.DDPMScheduler(prediction_type="sample")
    assert fi.Diffusion(scheduler, target="epsilon").target == "epsilon"


def test_a_scheduler_whose_target_is_not_known_is_refused(diffusers):
    scheduler = diffusers.DDPMScheduler()
    scheduler.register_to_config(prediction_type="flow_prediction")
    with pytest.raises(fi.SettingError, match="the scheduler's prediction_type"):
        fi.Diffusion(scheduler)


def test_a_flow_matching_scheduler_is_refused(diffusers):
    with pytest.raises(fi.SettingError, match="got FlowMatchEulerDiscreteScheduler"):
        fi.Diffusion(diffusers.FlowMatchEulerDiscreteScheduler())


def test_a_class_label_is_handed_to_the_model(diffusers):
    model, scheduler = unet(diffusers, num_class_embeds=3), diffusers.DDPMScheduler(num_train_timesteps=50)
    task = fi.Diffusion(scheduler, timesteps=[5], condition={"class_labels": "label"})
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    got = read(task, {"images": SMALL, "label": labels}, model)
    other = read(task, {"images": SMALL, "label": (labels + 1) % 3}, model)
    assert not torch.allclose(got, other, rtol=1e-4)
    noise = torch.stack([noise_of(image, 5) for image in SMALL])
    times = torch.full((6,), 5)
    with torch.no_grad():
        output = model(scheduler.add_noise(SMALL, noise, times), times, class_labels=labels).sample
    want = (output.double() - noise.double()).square().mean((1, 2, 3))
    assert_close(got, want, rtol=1e-5, why="float32 noising and forward, in another order")


@pytest.mark.whole
@pytest.mark.filterwarnings("ignore")  # diffusers' own, about its blocks
def test_text_states_are_handed_to_a_conditioned_model_and_the_copy_is_found(diffusers):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=8, attention_head_dim=4,
        )  # fmt: skip
        states = torch.randn(6, 3, 8)
    task = fi.Diffusion(
        diffusers.DDPMScheduler(num_train_timesteps=50),
        timesteps=[5, 30],
        condition={"encoder_hidden_states": "states"},
    )
    train = {"images": SMALL, "states": states}
    query = {"images": SMALL[2:3], "states": states[2:3]}
    scores = fi.attribute(model, train, query, task=task, progress=False)
    assert_within(
        scores.share[0, 2:3], [1.0], atol=8 * float(scores.noise_floor[0] / scores.rise[0]), why="a copy has share 1"
    )
    moved = fi.attribute(model, {**train, "states": states.flip(0)}, query, task=task, progress=False)
    assert not np.allclose(moved.baseline, scores.baseline, rtol=1e-4)


def test_a_denoiser_in_half_precision_is_judged_in_float64(diffusers):
    task = fi.Diffusion(diffusers.DDPMScheduler(num_train_timesteps=50), timesteps=[5])
    found = read(task, SMALL.bfloat16(), unet(diffusers).bfloat16())
    assert found.dtype == torch.float64
    assert (found > 0).all()
