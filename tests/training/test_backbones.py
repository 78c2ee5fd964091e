"""Each backbone against its own network called by hand, and every kind of source. Random weights: wiring only."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL
from small_models import make_pixart, make_teacher

from training.errors import UserError
from training.export.stable_diffusion import stable_diffusion_checkpoint
from training.networks.backbones import backbone_class, load_backbone
from training.networks.text import Text


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("micro_conditions", [False, True])
def test_pixart_keeps_the_first_half_and_reads_no_padding(tmp_path, micro_conditions):
    backbone = load_backbone("pixart", str(make_pixart(tmp_path / "t", micro_conditions)))
    assert backbone.latent_shape() == (4, 4, 4)
    text = backbone.encode(["A red circle ", "a pet"])
    assert text.embeddings.shape == (2, 120, 12) and text.mask.sum(1).tolist() == [4, 3]
    assert torch.equal(text.embeddings, backbone.encode(["a RED circle", "a pet"]).embeddings)
    x_t, t = noise(2, 4, 4, 4), torch.tensor([5, 400])
    eps = backbone.predict(backbone.network, x_t, t, text)
    assert eps.shape == (2, 4, 4, 4) and eps.dtype == torch.float32
    size = {"resolution": torch.tensor([[32.0, 32.0]] * 2), "aspect_ratio": torch.tensor([[1.0]] * 2)}
    expected = backbone.network(
        x_t,
        encoder_hidden_states=text.embeddings,
        encoder_attention_mask=text.mask,
        timestep=t,
        added_cond_kwargs=size if micro_conditions else {"resolution": None, "aspect_ratio": None},
    ).sample
    assert expected.shape[1] == 8 and torch.equal(eps, expected[:, :4])
    padded = Text(text.embeddings.where(text.mask[..., None].bool(), 100.0), text.mask)
    torch.testing.assert_close(backbone.predict(backbone.network, x_t, t, padded), eps)


@pytest.mark.parametrize("name, folder", [("stable_diffusion", "teacher"), ("pixart", "pixart")])
def test_v_prediction_is_converted(request, tmp_path, name, folder):
    """eps = alpha v + sigma x_t, and so x0 = alpha x - sigma v."""
    shutil.copytree(request.getfixturevalue(folder), tmp_path / "v")
    path = tmp_path / "v/scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))
    backbone = load_backbone(name, str(tmp_path / "v"))
    text, z = backbone.encode(["red"]), noise(1, 4, 4, 4)
    with torch.no_grad():
        v = backbone.output(backbone.network, z, torch.tensor([700]), text)
        x0 = backbone.one_step(backbone.network, z, text, 700, "unit")
    alpha, sigma = backbone.alphas[700], backbone.sigmas[700]
    torch.testing.assert_close(x0, alpha * z - sigma * v, rtol=1e-4, atol=1e-4)
    clean = noise(1, 4, 4, 4) + 1
    x_t = backbone.add_noise(clean, z, torch.tensor([700]))

    def perfect(x, t, encoder_hidden_states, **rest):
        return (alpha * z - sigma * clean,)

    if name == "stable_diffusion":
        eps = backbone.predict(perfect, x_t, torch.tensor([700]), text)
        torch.testing.assert_close(eps, z, rtol=1e-4, atol=1e-5)


def test_single_files_give_what_the_folder_gives(teacher, tmp_path):
    """A UNet in diffusers' names, and a checkpoint in the original layout with other text and picture weights."""
    folder = make_teacher(tmp_path / "teacher")
    shutil.rmtree(folder / "vae")
    torch.manual_seed(3)
    kind = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    AutoencoderKL(block_out_channels=(32,), latent_channels=4, **kind).save_pretrained(folder / "vae")
    whole = load_backbone("stable_diffusion", str(folder))
    changed = {name: {key: value * 1.01 for key, value in getattr(whole, name).state_dict().items()
                      if value.is_floating_point()} for name in ("network", "vae", "text_encoder")}  # fmt: skip
    checkpoint = stable_diffusion_checkpoint(*changed.values(), 0.18215)
    safetensors.torch.save_file({k: v.contiguous() for k, v in checkpoint.items()}, tmp_path / "all.safetensors")
    safetensors.torch.save_file(changed["network"], tmp_path / "unet.safetensors")
    for name in ("all", "unet"):
        read = load_backbone("stable_diffusion", str(tmp_path / f"{name}.safetensors"), parts=str(folder))
        for part, wanted in changed.items():
            state = getattr(read, part).state_dict()
            origin = wanted if name == "all" or part == "network" else getattr(whole, part).state_dict()
            assert all(torch.equal(state[key], origin[key]) for key in wanted), (name, part)
    with pytest.raises(UserError, match="holds no Stable Diffusion UNet"):
        safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "odd.safetensors")
        load_backbone("stable_diffusion", str(tmp_path / "odd.safetensors"), parts=str(folder))


def test_a_single_pixart_file_with_zero_embedders(pixart, tmp_path):
    state = safetensors.torch.load_file(pixart / "transformer/diffusion_pytorch_model.safetensors")
    extra = {"adaln_single.emb.resolution_embedder.linear_1.weight": torch.zeros(1)}
    safetensors.torch.save_file(state | extra, tmp_path / "p.safetensors")
    read = load_backbone("pixart", str(tmp_path / "p.safetensors"), parts=str(pixart))
    assert all(torch.equal(value, state[key]) for key, value in read.network.state_dict().items())


@pytest.mark.parametrize(
    "source, sentence",
    [
        ("/nowhere/teacher", "There is no teacher /nowhere/teacher"),
        ("./teacher", "There is no teacher"),
        ("build/demo/teacher", "There is no teacher"),
        ("model.ckpt", "There is no teacher"),
        ("missing.safetensors", "There is no teacher"),
    ],
)
def test_what_looks_local_is_not_looked_for_on_the_hub(monkeypatch, source, sentence):
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: pytest.fail("asked the network"))
    with pytest.raises(UserError, match=sentence):
        load_backbone("stable_diffusion", source)


def test_parts_that_do_not_go_together(teacher, pixart, tmp_path):
    with pytest.raises(UserError, match="allowed is one of pixart, stable_diffusion"):
        backbone_class("flux")
    (tmp_path / "pickle.ckpt").write_bytes(b"x")
    with pytest.raises(UserError, match="no .safetensors; save it as one, pickles are not read"):
        load_backbone("stable_diffusion", str(tmp_path / "pickle.ckpt"))
    shutil.copytree(teacher, tmp_path / "mixed")
    config = tmp_path / "mixed/text_encoder/config.json"
    smaller = json.loads(config.read_text()) | {"vocab_size": 50}
    config.write_text(json.dumps(smaller))
    with pytest.raises(UserError, match="text_encoder|they are no pair"):
        load_backbone("stable_diffusion", str(tmp_path / "mixed"))
    shutil.copytree(pixart, tmp_path / "narrow")
    config = tmp_path / "narrow/text_encoder/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 5}))
    with pytest.raises(UserError, match="the tokenizer knows 11 tokens, the text encoder only 5; they are no pair"):
        load_backbone("pixart", str(tmp_path / "narrow"))


def test_zero_terminal_snr_is_refused_where_it_would_divide_by_nothing(teacher, tmp_path):
    shutil.copytree(teacher, tmp_path / "t")
    path = tmp_path / "t/scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rescale_betas_zero_snr": True}))
    backbone = load_backbone("stable_diffusion", str(tmp_path / "t"))
    backbone.check_timesteps({"start.timestep": 900})
    with pytest.raises(UserError, match="start.timestep goes to 999, .*zero terminal SNR"):
        backbone.check_timesteps({"start.timestep": 999})
    with pytest.raises(UserError, match="vsd.timesteps goes to 1000; the schedule of .* ends at 999"):
        backbone.check_timesteps({"vsd.timesteps": 1000})


@pytest.mark.parametrize("layer", ["conv_in.weight", "conv_out.weight"])
def test_a_teacher_of_finite_weights_that_answers_infinity(teacher, tmp_path, layer):
    """Caught by one small forward when it is loaded."""
    shutil.copytree(teacher, tmp_path / "t")
    path = tmp_path / "t/unet/diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors[layer] = tensors[layer].sign() * 1e38
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    with pytest.raises(UserError, match="The unet of the teacher .* answers NaN or infinite numbers"):
        load_backbone("stable_diffusion", str(tmp_path / "t"))
