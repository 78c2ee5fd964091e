"""NASA Alpha Sweep: the one-step sampler's own pictures, in one go, on a labelled sheet."""

import itertools

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.taesd.taesd
import comfy.utils
import pytest
import torch

LATENT = {"samples": torch.zeros(1, 4, 8, 8)}
NEGATIVE_TOKENS = 40


@pytest.fixture(scope="module")
def vae():
    """A small autoencoder of random weights."""
    generator, weights = torch.Generator().manual_seed(0), comfy.taesd.taesd.TAESD().state_dict()
    for value in weights.values():
        scale = 1.4 / value[0].numel() ** 0.5 if value.ndim else 1.0
        value.copy_(torch.randn(value.shape, generator=generator) * scale)
    return comfy.sd.VAE(sd=weights)


@pytest.fixture
def node(pack):
    return pack.alpha_sweep.NASAAlphaSweep


@pytest.fixture
def run(node, model, text, vae):
    """run(...) -> (image, info) of the node"""

    def run(alpha_from=0.5, alpha_to=1.0, count=2, model=model, latent=LATENT, seed=5, vae=vae):
        with torch.inference_mode():
            return node.execute(
                model, text(1), text(2, tokens=NEGATIVE_TOKENS), latent, vae, seed, "sd", alpha_from, alpha_to, count
            ).args

    yield run
    comfy.model_management.unload_all_models()


@pytest.fixture
def shown(pack, run, monkeypatch):
    """shown(...) -> the pictures and labels that the node puts on its sheet"""

    def shown(**inputs):
        found = []
        monkeypatch.setattr(pack.alpha_sweep, "sheet", lambda pictures, labels: found.extend((pictures, labels)))
        run(**inputs)
        return found

    return shown


def pictures_of_the_sampler(pack, model, text, vae, alphas):
    execute, negative = pack.one_step_sampler.SNOOPIOneStepSampler.execute, text(2, tokens=NEGATIVE_TOKENS)
    with torch.inference_mode():
        latents = [execute(model, text(1), LATENT, 5, "sd").args[0]]
        latents += [execute(model, text(1), LATENT, 5, "sd", negative, alpha).args[0] for alpha in alphas]
        return [vae.decode(latent["samples"]) for latent in latents]


def test_it_shows_the_one_step_samplers_pictures_the_plain_one_first(pack, model, text, vae, shown):
    pictures, labels = shown(alpha_from=0.5, alpha_to=1.0, count=3)
    assert labels == ["no negative", "alpha 0.5", "alpha 0.75", "alpha 1"]
    expected = pictures_of_the_sampler(pack, model, text, vae, [0.5, 0.75, 1.0])
    assert all(torch.equal(found, wanted) for found, wanted in zip(pictures, expected, strict=True))
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(pictures, 2))


def test_the_plain_picture_is_plain_on_a_steered_model_too(pack, model, text, vae, shown):
    steered = pack.payload.patch(model, text(3), 1.5, rule="auto")
    (plain, _), _ = shown(model=steered, count=1)
    assert torch.equal(plain, pictures_of_the_sampler(pack, model, text, vae, [])[0])


def test_from_high_to_low_and_a_single_alpha_just_work(shown):
    assert shown(alpha_from=1.0, alpha_to=0.0, count=2)[1] == ["no negative", "alpha 1", "alpha 0"]
    assert shown(alpha_from=0.4, alpha_to=0.4, count=1)[1] == ["no negative", "alpha 0.4"]


def test_keys_and_values_of_the_negative_are_kept_from_alpha_to_alpha(pack, model, run, monkeypatch):
    monkeypatch.setattr(pack.prompt, "SHARE", 100.0)  # a narrow model is so small that one percent holds nothing
    attention, lengths = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2, []
    handle = attention.to_k.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    run(count=4, alpha_to=1.1)
    handle.remove()
    assert lengths.count(NEGATIVE_TOKENS) == 1 and len(lengths) == 1 + 5


def test_weights_are_loaded_once(model, run, monkeypatch):
    """A LoRA's weights are patched in when a model is loaded."""
    patched, weight = model.clone(), "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    patched.add_patches({weight: ("diff", (torch.ones_like(model.model.state_dict()[weight]),))}, 1.0)
    loaded, real = [], comfy.model_patcher.ModelPatcher.patch_weight_to_device

    def patch_weight_to_device(self, key, *args, **kwargs):
        loaded.append(key)
        return real(self, key, *args, **kwargs)

    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "patch_weight_to_device", patch_weight_to_device)
    run(model=patched, count=4, alpha_to=1.1)
    assert loaded.count(weight) == 1


@pytest.fixture
def progress():
    """progress(hook): what ComfyUI's progress bar is told meanwhile"""
    yield comfy.utils.set_progress_bar_global_hook
    comfy.utils.set_progress_bar_global_hook(None)


def test_progress_runs_once_from_the_first_picture_to_the_last(run, progress):
    told = []
    progress(lambda value, total, *_, **__: told.append((value, total)))
    run(count=4, alpha_to=1.1)
    assert told[0] == (1, 5) and told[-1] == (5, 5) and told == sorted(set(told))  # newer versions leave some out


def test_cancel_ends_it_between_pictures_and_leaves_nothing_behind(run, progress):
    before, _ = run(count=3)
    told = []

    def interrupt(value, total, *_, **__):
        told.append(value)
        comfy.model_management.interrupt_current_processing()

    progress(interrupt)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(count=3)
    assert told == [1]
    progress(None)
    assert torch.equal(run(count=3)[0], before)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"count": 0}, "count is 0.*from 1 to 30"),
        ({"count": -3}, "count is -3.*from 1 to 30"),
        ({"count": 1000}, "count is 1000.*from 1 to 30"),
        ({"alpha_from": 0.5, "alpha_to": 0.5}, "alpha_from and alpha_to are both 0.5.*apart"),
        ({"alpha_from": float("nan")}, "alpha_from is nan.*from 0 to 10"),
        ({"alpha_to": float("inf")}, "alpha_to is inf.*from 0 to 10"),
        ({"alpha_from": -1.0}, "alpha_from is -1.*from 0 to 10"),
    ],
)
def test_an_empty_or_impossible_sweep_is_one_sentence_before_the_run(node, run, inputs, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(**inputs)
    told = node.validate_inputs(**{"alpha_from": 0.5, "alpha_to": 1.0, "count": 2} | inputs)
    with pytest.raises(ValueError, match=sentence):
        raise ValueError(told)


def test_connected_numbers_are_not_judged_before_the_run(node):
    assert node.validate_inputs(alpha_from=None, alpha_to=0.5, count=None) is True
    assert node.validate_inputs(alpha_from=0.5, alpha_to=0.5, count=None) is True


def test_no_vae_is_one_sentence(run):
    with pytest.raises(ValueError, match="vae is empty.*Load VAE"):
        run(vae=None)


def test_a_batch_gives_a_row_for_each_of_its_pictures(run):
    one, _ = run(count=3)
    three, _ = run(count=3, latent={"samples": torch.zeros(3, 4, 8, 8)})
    assert one.shape[0] == three.shape[0] == 1 and one.dtype == torch.float32
    assert three.shape[1] > 3 * 256 > one.shape[1] > 2 * 256 and three.shape[2] > 4 * 256 > one.shape[2] > 2 * 256


def test_every_picture_is_on_the_sheet_whole_and_under_its_label(pack):
    pictures = [torch.full((1, 300, 400, 3), value) for value in (0.2, 0.4, 0.6, 0.8, 1.0)]
    made = pack.sheet.sheet(pictures, ["plain", "a", "b", "c", "d"])[0]
    for picture in pictures:
        rows, columns = ((made - picture[0, 0, 0]).abs().amax(-1) < 1 / 512).nonzero().unbind(1)
        top, left = rows.min(), columns.min()
        block = made[top : top + 300, left : left + 400]
        if picture[0, 0, 0, 0] < 1:  # white is the labels' colour too
            assert (block - picture[0, 0, 0]).abs().max() < 1 / 255 and len(rows) == 300 * 400
            assert made[top - 40 : top, left : left + 400].max() > 0.9  # the label


def test_small_pictures_are_enlarged_by_a_whole_factor(pack):
    small = torch.rand(1, 32, 48, 3)
    made = pack.sheet.sheet([small], ["plain"])[0]
    large = ((small[0] * 255).round() / 255).repeat_interleave(8, 0).repeat_interleave(8, 1)
    gap = (made.shape[1] - 384) // 2
    torch.testing.assert_close(made[-256 - gap : -gap, gap : gap + 384], large)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (5, 3), (6, 3), (8, 4), (11, 4)])
def test_square_pictures_lie_in_rows_of_about_equal_length(pack, count, columns):
    assert pack.sheet.columns_of(count, 1.0) == columns
