"""Tracing generated images in small denoisers: near copies are found, and unlearning is what its formula says."""

import contextlib
import json
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cases import keyed
from close import assert_close

import forwardinf as fi
from forwardinf.use.images.trace_images import KEYS_AND_VALUES, unlearning

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
STEPS = [5, 30]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FORWARDINF_CACHE", str(tmp_path / "cache"))


def scheduler():
    return diffusers.DDPMScheduler(num_train_timesteps=50)


@cache
def images():
    """Return 12 training images 8×8: bars at different places, so that each is known by sight."""
    found = torch.full((12, 1, 8, 8), -1.0)
    for row in range(12):
        if row < 6:
            found[row, 0, row + 1] = 1.0
        else:
            found[row, 0, :, row - 5] = 1.0
    return found + 0.1 * torch.randn(found.shape, generator=torch.Generator().manual_seed(0))


def generated(row=3):
    """Return one image that is nearly training image ``row``."""
    return images()[row : row + 1] + 0.05 * torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(9))


@cache
def denoiser():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = diffusers.UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
            down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        optimiser, plan = torch.optim.Adam(model.parameters(), lr=3e-3), scheduler()
        for _ in range(120):
            noise, times = torch.randn(12, 1, 8, 8), torch.randint(50, (12,))
            error = model(plan.add_noise(images(), noise, times), times).sample - noise
            optimiser.zero_grad()
            error.square().mean().backward()
            optimiser.step()
        optimiser.zero_grad()
    return model.eval()


@cache
def conditioned():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=8, attention_head_dim=4,
        ).eval()  # fmt: skip


def traced(model=None, asked=None, **settings):
    given = {"task": fi.Diffusion(scheduler(), timesteps=STEPS), "progress": False, **settings}
    return fi.trace_images(model or denoiser(), images(), generated() if asked is None else asked, **given)


@pytest.mark.parametrize("settings", [
    {}, {"how": "whitened"}, {"how": "cosine"}, {"reading": "loss"}, {"reading": "picture"}, {"jointly": True},
    {"perturbation": "unlearning"},
])  # fmt: skip
def test_the_image_that_was_nearly_copied_is_found_first(settings):
    found = traced(**settings)
    assert found.table["train"].iloc[0] == 3
    assert found.table["score"].iloc[0] > 0
    assert found.baselines["train"].iloc[0] == 3
    assert list(found.table.columns) == ["image", "rank", "train", "score", "share", "pixel_similarity"]


@pytest.mark.whole
def test_unlearning_is_the_step_that_the_paper_writes():
    """θ + (α/N) (F + ε·mean F)⁻¹ ∇L(query) on K and V, everything one example and one draw at a time, by autograd."""
    model, states = conditioned(), torch.randn(12, 3, 8, generator=torch.Generator().manual_seed(4))
    task = fi.Diffusion(scheduler(), timesteps=STEPS, condition={"encoder_hidden_states": "states"})
    train, query = {"images": images(), "states": states}, {"images": generated(), "states": states[3:4]}
    moved = {n: p for n, p in model.named_parameters() if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    assert moved

    def one(task, data, row):
        with keyed(task, data, row):
            return task.loss(model, {name: value[row : row + 1] for name, value in data.items()})

    found = fi.attribute(model, train, query, task=task, perturbation=unlearning(model, examples=12, alpha=1e-3, floor=0.1),
                         progress=False, keep="all")  # fmt: skip
    sums = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in moved.items()}
    for row in range(12):
        for draw in task.draws():
            for name, g in zip(
                moved, torch.autograd.grad(one(draw, train, row).sum(), list(moved.values())), strict=True
            ):
                sums[name] += g.double().square() / (12 * len(STEPS))
    floor = 0.1 * torch.cat([f.flatten() for f in sums.values()]).mean()
    step = torch.autograd.grad(one(task, query, 0).sum(), list(moved.values()))
    before = torch.stack([one(task, train, row)[0].detach() for row in range(12)])
    kept = {name: p.detach().clone() for name, p in moved.items()}
    with torch.no_grad():
        for (name, p), g in zip(moved.items(), step, strict=True):
            p += (1e-3 / 12 * g.double() / (sums[name] + floor)).to(p)
        after = torch.stack([one(task, train, row)[0] for row in range(12)])
        for name, p in moved.items():
            p.copy_(kept[name])
    want = (after - before).numpy()
    assert_close(
        found.values[0],
        want,
        rtol=1e-4,
        why="float32 weights and forwards, differences of about 1e-2 between losses of about 1",
    )


def test_unlearning_moves_keys_and_values_where_there_are_any():
    assert unlearning(conditioned()).parameters == KEYS_AND_VALUES
    assert unlearning(denoiser()).parameters is None
    assert unlearning(denoiser(), parameters="conv_in*").parameters == ("conv_in*",)
    assert unlearning(denoiser(), examples=1000, steps=3).lr == pytest.approx(1e-5)
    with pytest.raises(fi.SettingError, match="one of examples and length"):
        unlearning(denoiser(), examples=10, length=0.1)


@pytest.mark.whole
def test_the_larger_of_an_image_and_its_mirror_image_counts():
    mirrored = generated(7).flip(-1)
    plain, both = (traced(asked=mirrored, how="cosine", flips=flips) for flips in ("none", "max"))
    turned = fi.trace_images(denoiser(), images().flip(-1), mirrored, task=fi.Diffusion(scheduler(), timesteps=STEPS),
                             how="cosine", progress=False)  # fmt: skip
    want = np.maximum(plain.scores.values, turned.scores.values)
    assert both.scores.values.argmax() == 7
    assert_close(both.scores.values, want, rtol=1e-3, why="float32 gradients; all images see the same noise")


@pytest.mark.whole
def test_gradients_are_compared_under_one_noise_unless_the_task_says_otherwise():
    default, shared, own = (
        traced(how="cosine", task=fi.Diffusion(scheduler(), timesteps=STEPS, noise=noise)).scores.values
        for noise in ("auto", "shared", "own")
    )
    assert np.array_equal(default, shared)
    assert not np.allclose(default, own, atol=1e-3)


@pytest.mark.parametrize("target", ["epsilon", "v_prediction", "sample"])
def test_the_picture_that_is_read_is_the_clean_image_where_a_denoiser_is_right(target):
    """√ᾱ x̂₀ from each kind of output: a model that knows the image and the noise gives √ᾱ x."""
    task = fi.Diffusion(scheduler(), timesteps=STEPS, target=target).varied(noise="shared", reads="picture")

    class Right(torch.nn.Module):
        def forward(self, noisy, timestep):
            alpha = task.alphas[timestep[0]].double()
            clean = images().double()
            noise = (noisy.double() - alpha.sqrt() * clean) / (1 - alpha).sqrt()
            return {"epsilon": noise, "sample": clean,
                    "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * clean}[target].float()  # fmt: skip

    want = sum(float(task.alphas[step]) for step in STEPS) / len(STEPS) * images().double().square().flatten(1).mean(1)
    assert_close(task.loss(Right(), images()), want, rtol=1e-5, why="float32 outputs")


@pytest.mark.whole
def test_both_readings_side_by_side_are_the_mean_of_each():
    both, loss, picture = (
        traced(how="cosine", reading=reading).scores.values for reading in ("both", "loss", "picture")
    )
    assert_close(both, (loss + picture) / 2, rtol=1e-5, why="float32 rows of length one; cosines add up")
    assert not np.allclose(loss, picture, atol=1e-3)


@pytest.mark.whole
def test_candidates_and_names():
    found = traced(candidates=[[3, 5]], image_ids=["a"], ids=[f"t{row}" for row in range(12)])
    assert found.table["train"].tolist() == ["t3", "t5"]
    assert set(found.table["image"]) == {"a"}
    assert int(np.isfinite(found.scores.values).sum()) == 2
    with pytest.raises(fi.DataError, match="candidates"):
        traced(candidates=[[99]])


def test_the_report_shows_pictures_and_the_folder_can_be_read(tmp_path):
    found = traced(ids=["<b>" + str(row) for row in range(12)])
    page = found.report(tmp_path / "images.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") >= 2
    assert "<b>3" not in page
    found.save(tmp_path / "found")
    assert len(pd.read_parquet(tmp_path / "found" / "table.parquet")) == 12
    assert json.loads((tmp_path / "found" / "use.json").read_text())["use"] == "trace-images"


def test_a_pipeline_without_encoders_is_its_denoiser_and_scheduler():
    from PIL import Image

    model, task = fi.Diffusion.from_pipeline(diffusers.DDPMPipeline(denoiser(), scheduler()), timesteps=2)
    pixels = ((images() + 1.5) * 85).round().clamp(0, 255).byte()
    rows = [{"image": Image.fromarray(image[0].numpy(), "L")} for image in pixels]
    asked = [{"image": pixels[3]}]
    found = fi.trace_images(model, rows, asked, task=task, progress=False)
    assert found.table["train"].iloc[0] == 3
    plain = fi.trace_images(denoiser(), pixels.float() / 127.5 - 1, pixels[3:4].float() / 127.5 - 1, progress=False,
                            task=fi.Diffusion(scheduler(), timesteps=2))  # fmt: skip
    assert_close(found.scores.values, plain.scores.values, rtol=1e-3, why="the same images, scaled by the task")


@pytest.mark.whole
def test_a_pipeline_encodes_images_and_texts_once():
    transformers = pytest.importorskip("transformers")
    from texts_cases import tokenizer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = diffusers.AutoencoderKL(in_channels=1, out_channels=1, latent_channels=1, block_out_channels=(4, 4),
                                      norm_num_groups=2,
                                      down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                                      sample_size=16, scaling_factor=0.5).eval()  # fmt: skip
        words = tokenizer()
        words.model_max_length = 6
        encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(
            vocab_size=len(words), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=6, eos_token_id=1, pad_token_id=1, bos_token_id=0)).eval()  # fmt: skip

    class Pipe:
        pass

    pipe = Pipe()
    pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.unet, pipe.scheduler = (
        vae,
        encoder,
        words,
        conditioned(),
        scheduler(),
    )
    calls = []
    vae.register_forward_pre_hook(lambda module, given: calls.append(1))
    encode = vae.encode
    vae.encode = lambda given, **more: (calls.append(len(given)), encode(given, **more))[1]
    model, task = fi.Diffusion.from_pipeline(pipe, text="caption", timesteps=2)
    large = torch.nn.functional.interpolate(images(), scale_factor=2)
    rows = [{"image": image, "caption": "hal lives in rome"} for image in large]
    found = fi.trace_images(model, rows, rows[3:4], task=task, how="cosine", progress=False)
    assert found.table["train"].iloc[0] == 3
    assert found.table["score"].iloc[0] == pytest.approx(1.0, abs=1e-3)
    assert sum(calls) <= 12 + 1 + 12 + 1, "once for each row and reader"
    with torch.no_grad():
        latents = encode(large[:1]).latent_dist.mode() * 0.5
        batch = task.prepare(task.collate(rows[:1]))
    assert_close(batch["latents"], latents, rtol=1e-6, why="the posterior's mean, scaled")
    assert batch["encoder_hidden_states"].shape == (1, 6, 8)


def test_another_pipeline_is_refused():
    class Pipe:
        unet = torch.nn.Linear(2, 2)

    with pytest.raises(fi.ModelError, match="a pipeline with one of"):
        fi.Diffusion.from_pipeline(Pipe())
    with pytest.raises(fi.SettingError, match="nothing: the pipeline says"):
        fi.Diffusion.from_pipeline(diffusers.DDPMPipeline(denoiser(), scheduler()), latents=0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"how": "best"}, "how"),
        ({"how": "dot", "perturbation": "linear"}, "one of"),
        ({"flips": "mean"}, "flips"),
        ({"k": 0}, "k ≥ 1"),
    ],
)
def test_what_cannot_be_is_refused(settings, told):
    with pytest.raises(fi.SettingError, match=told):
        traced(**settings)


def test_the_command_reads_a_saved_pipeline(tmp_path, monkeypatch, capsys):
    from forwardinf.view.cli import main

    monkeypatch.chdir(tmp_path)
    diffusers.DDPMPipeline(denoiser(), scheduler()).save_pretrained("ddpm")
    np.savez("images.npz", x_train=images().numpy(), x_test=generated().numpy())
    words = ["trace-images", "--pipeline", "ddpm", "--data", "images.npz", "--queries", "data:test", "--timesteps", "2"]
    monkeypatch.setattr("sys.argv", ["forwardinf", *words, "--report", "page.html", "--json"])
    with contextlib.suppress(SystemExit):
        main()
    told = capsys.readouterr()
    assert json.loads(told.out)["table"][0]["train"] == 3, told.err
    assert Path("page.html").is_file()
    monkeypatch.setattr("sys.argv", ["forwardinf", *words, "-k", "2"])
    with contextlib.suppress(SystemExit):
        main()
    assert "pixel similarity" in capsys.readouterr().err
