"""K- and V- are kept from step to step and from picture to picture, and made anew when weights have moved."""

import gc
import weakref
from contextlib import contextmanager

import comfy.hooks
import comfy.model_management
import pytest
import torch

CLOSE = {"rtol": 1e-4, "atol": 1e-3}  # x0 reaches 40
TOKENS, NEGATIVE_TOKENS = 77, 40


@pytest.fixture(autouse=True)
def room(pack, monkeypatch):
    """A narrow model is so small that one percent of it holds nothing."""
    monkeypatch.setattr(pack.prompt, "SHARE", 100.0)


@pytest.fixture
def projected(model):
    """projected(): the token counts that went through one layer's to_k meanwhile."""

    @contextmanager
    def projected():
        attn, lengths = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2, []
        handle = attn.to_k.register_forward_pre_hook(lambda _, args: lengths.append(tuple(args[0].shape[:2])))
        yield lengths
        handle.remove()

    return projected


def negative(text):
    return text(2, tokens=NEGATIVE_TOKENS)


def with_lora(model, seed=5):
    """Weight patches on every cross-attention's keys and values, in the manner of a LoRA."""
    model, generator = model.clone(), torch.Generator().manual_seed(seed)
    model.add_patches(lora(model, generator), 1.0)
    return model


def lora(model, generator):
    names = [name for name in model.model.state_dict() if "attn2.to_k" in name or "attn2.to_v" in name]
    shapes = {name: model.model.state_dict()[name].shape for name in names}
    return {name: ("diff", (torch.randn(shapes[name], generator=generator) * 0.2,)) for name in names}


def test_once_for_all_steps_and_pictures(pack, model, text, sample, truth, projected):
    """One row whatever the batch, and the same bits from the first picture on."""
    patched, positive = pack.payload.patch(model, negative(text), 0.4), text(1)
    with truth(model, negative(text)[0][0], 0.4):
        expected = sample(model, positive, steps=3, batch=2)
    with projected() as lengths:
        first = sample(patched, positive, steps=3, batch=2)
    assert lengths == [(1, NEGATIVE_TOKENS)] + [(2, TOKENS)] * 3
    with projected() as lengths:
        second = sample(patched, positive, steps=3, batch=2)
        larger = sample(patched, positive, steps=1, batch=3)
    assert lengths == [(2, TOKENS)] * 3 + [(3, TOKENS)]
    assert torch.equal(first, second) and larger.shape[0] == 3
    torch.testing.assert_close(first, expected, **CLOSE)


def test_the_one_step_sampler_keeps_them_from_picture_to_picture(pack, model, text, projected):
    """It patches its model anew each time; another negative, or a LoRA on the model, is projected anew."""
    execute, latent = pack.one_step_sampler.SNOOPIOneStepSampler.execute, {"samples": torch.zeros(1, 4, 8, 8)}

    def pictures(model, unwanted, seeds, alpha=0.4):
        with torch.inference_mode(), projected() as lengths:
            found = [execute(model, text(1), latent, seed, "sd", unwanted, alpha).args[0]["samples"] for seed in seeds]
        return found, [length for _, length in lengths].count(NEGATIVE_TOKENS)

    unwanted = negative(text)
    (first, second), count = pictures(model, unwanted, [1, 2])
    assert count == 1 and not torch.equal(first, second)
    (again, _), count = pictures(model, unwanted, [1, 3], alpha=0.4)
    assert count == 0 and torch.equal(again, first)
    other = text(3, tokens=NEGATIVE_TOKENS)
    (third,), count = pictures(model, other, [1])
    assert count == 1 and not torch.equal(third, first)
    patched = with_lora(model)
    (fourth, _), count = pictures(patched, unwanted, [1, 2])
    assert count == 1 and not torch.equal(fourth, first)
    (fifth,), count = pictures(patched.clone(), unwanted, [1])
    assert count == 1 and torch.equal(fifth, fourth)
    comfy.model_management.unload_all_models()  # takes the LoRA out of the weights


def test_nothing_is_kept_of_a_model_that_is_gone(pack, model, text, sample):
    clone, unwanted = model.clone(), negative(text)
    kept = pack.kept.kept_for_clones(clone, unwanted)
    assert pack.kept.kept_for_clones(clone, unwanted) is kept
    sample(pack.payload.patch(clone.clone(), unwanted, 0.4, kept=kept), text(1))
    assert kept
    alive = weakref.ref(kept)
    comfy.model_management.unload_all_models()
    del clone, kept
    gc.collect()
    assert alive() is None


def test_kept_or_not_is_the_same_picture(pack, model, text, sample, monkeypatch):
    kept = sample(pack.payload.patch(model, negative(text), 0.4), text(1), steps=2)
    monkeypatch.setattr(pack.prompt, "SHARE", 0.0)
    torch.testing.assert_close(sample(pack.payload.patch(model, negative(text), 0.4), text(1), steps=2), kept, **CLOSE)


def test_too_large_is_not_kept(pack, model, text, sample, projected, monkeypatch):
    """The layers are tried one by one, and this one's turn does not come."""
    monkeypatch.setattr(pack.prompt, "SHARE", 1e-6)
    patched = pack.payload.patch(model, negative(text), 0.4)
    with projected() as lengths:
        sample(patched, text(1), steps=2)
    assert lengths == [(1, TOKENS), (1, NEGATIVE_TOKENS)] * 2
    (wrapper,) = patched.get_wrappers("sampler_sample", pack.payload.KEY)
    (projection,) = wrapper.args[0][""].kept.values()
    assert projection.keys_values == {}


def test_as_many_layers_as_there_is_room_for(pack, model, text, sample, monkeypatch):
    layers = [layer for layers in pack.unet.blocks(model.model.diffusion_model).values() for layer in layers]
    sizes = [2 * NEGATIVE_TOKENS * layer.attention.to_k.out_features * 4 for layer in layers]
    monkeypatch.setattr(pack.prompt, "SHARE", sum(sizes[:3]) / model.model_size())
    patched = pack.payload.patch(model, negative(text), 0.4)
    part = sample(patched, text(1), steps=2)
    (wrapper,) = patched.get_wrappers("sampler_sample", pack.payload.KEY)
    (projection,) = wrapper.args[0][""].kept.values()
    assert list(projection.keys_values) == layers[:3] and len(layers) > 3
    monkeypatch.setattr(pack.prompt, "SHARE", 0.0)
    torch.testing.assert_close(sample(pack.payload.patch(model, negative(text), 0.4), text(1), steps=2), part, **CLOSE)


def test_a_lora_on_a_clone_makes_them_anew(pack, model, text, sample, truth, projected):
    patched, positive = pack.payload.patch(model, negative(text), 0.4), text(1)
    plain = sample(patched, positive)
    after = with_lora(patched)
    with truth(model, negative(text)[0][0], 0.4):
        expected = sample(with_lora(model), positive)
    with projected() as lengths:
        torch.testing.assert_close(sample(after, positive), expected, **CLOSE)
    assert lengths == [(1, NEGATIVE_TOKENS), (1, TOKENS)]
    assert (expected - plain).abs().max() > 0.1
    assert torch.equal(sample(patched, positive), plain)


def test_weights_patched_in_place_make_them_anew(pack, model, text, sample, truth):
    patched, positive = pack.payload.patch(model, negative(text), 0.4), text(1)
    plain = sample(patched, positive)
    patched.add_patches(lora(patched, torch.Generator().manual_seed(5)), 1.0)
    with truth(model, negative(text)[0][0], 0.4):
        expected = sample(with_lora(model), positive)
    torch.testing.assert_close(sample(patched, positive), expected, **CLOSE)
    assert (expected - plain).abs().max() > 0.1
    sample(model, positive)  # ComfyUI takes weight patches out when another patcher of the model runs


def test_hooks_that_move_weights_between_steps(pack, model, text, sample, truth):
    """A LoRA hook that begins in the middle of the sampling."""

    def hooked():
        group = comfy.hooks.HookGroup()
        hook = comfy.hooks.WeightHook(strength_model=1.0)
        hook.weights = lora(model, torch.Generator().manual_seed(5))
        hook.need_weight_init = False
        group.add(hook)
        keyframes = comfy.hooks.HookKeyframeGroup()
        keyframes.add(comfy.hooks.HookKeyframe(strength=0.0, start_percent=0.0))
        keyframes.add(comfy.hooks.HookKeyframe(strength=1.0, start_percent=0.3))
        group.set_keyframes_on_hooks(keyframes)
        return [[text(1)[0][0], text(1)[0][1] | {"hooks": group}]]

    with truth(model, negative(text)[0][0], 0.4):
        expected = sample(model.clone(), hooked(), steps=3)
        without = sample(model, text(1), steps=3)
    assert (expected - without).abs().max() > 0.1
    patched = pack.payload.patch(model, negative(text), 0.4)
    sample(patched, text(1))  # kept before the hooks come
    torch.testing.assert_close(sample(patched, hooked(), steps=3), expected, **CLOSE)
    sample(model, text(1))
