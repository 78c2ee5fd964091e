"""The committed portraits model: what its record says, the detector and the one-step student measured again."""

import shutil

import numpy as np
import pytest
import safetensors
import torch
from diffusers import SD3Transformer2DModel

from training.errors import UserError
from training.export.stable_diffusion import VAE
from training.portraits import autoencoder, detector, drawing, latent_code, make, measurement, teacher, weights, world
from training.recipe import config
from training.shapes.autoencoder import decode

SIZE_LIMIT = 64 * 2**20


@pytest.fixture(scope="module")
def reader():
    return weights.load_detector()


@pytest.fixture
def copied(tmp_path):
    return shutil.copytree(weights.FOLDER, tmp_path / "weights")


def test_the_detector_reads_fresh_drawings(reader):
    assert make.fresh_accuracy(reader, count=300, seed=77) >= 0.99


def test_the_detector_names_nobody_where_nobody_is(reader):
    plain = torch.full((1, 64, 64, 3), 128, dtype=torch.uint8).numpy()
    noise = torch.randint(0, 256, (8, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    readings = detector.read(noise, reader) + detector.read(plain, reader)
    assert sum(None in reading.values() for reading in readings) >= 8


def test_the_detector_refuses_other_arrays(reader):
    with pytest.raises(ValueError, match=r"uint8 \[N, 64, 64, 3\], not float64"):
        detector.read(torch.zeros(1, 64, 64, 3).double().numpy(), reader)


def test_committed_weights_are_small_half_precision_and_as_recorded():
    record = weights.read_record()
    assert sum((weights.FOLDER / name).stat().st_size for name in weights.FILES) <= SIZE_LIMIT
    for name in weights.PARTS:
        tensors, described = weights.shared.read_part(name, weights.FOLDER)
        assert {tensor.dtype for tensor in tensors.values() if tensor.ndim} == {torch.float16}
        assert described["snoopi.start_timestep"] == str(record["start"]["timestep"]) == "720"
        assert described["snoopi.prediction"] == "flow-"


def test_record_meets_the_bars():
    record = weights.read_record()
    assert record["pictures"] == 500
    assert record["detector_accuracy"] >= 0.99
    assert record["teacher_accuracy"] >= 0.97
    assert record["student_accuracy"] >= 0.95
    for prompt, kinds in measurement.OPEN.items():
        assert max(record["student_who"][prompt].values()) <= 0.70, prompt
        assert sum(record["student_who"][prompt][kind] for kind in kinds) >= 0.95, prompt
    assert record["student_distance"] < record["teacher_one_step_distance"]


def test_the_recipe_is_still_what_the_weights_were_trained_with():
    def same(recorded: dict, now: dict) -> bool:
        pairs = [(value, now[key]) for key, value in recorded.items()]
        return all(same(one, other) if isinstance(one, dict) else one == other for one, other in pairs)

    assert same(weights.read_record()["distillation"], config.to_dict(config.load(weights.CONFIG)))


def committed_autoencoder():
    """The committed autoencoder by diffusers' names, whose decoder counts from 0."""
    model, (state, _) = autoencoder.untrained(), weights.shared.read_part("autoencoder.safetensors", weights.FOLDER)
    for key, weight in model.state_dict().items():
        part, _, index, rest = key.split(".", 3)
        weight.copy_(state[f"{VAE}taesd_{part}.{int(index) + (part == 'decoder')}.{rest}"])
    return model.eval()


@torch.no_grad()
def test_the_committed_student_follows_captions_in_one_step(reader, tmp_path):
    """By diffusers alone, 96 pictures of 24 captions; and both kinds come where the prompt leaves them open."""
    teacher.untrained().save_config(tmp_path)
    file = str(weights.FOLDER / "transformer.safetensors")
    network = SD3Transformer2DModel.from_single_file(file, config=str(tmp_path), local_files_only=True).float().eval()
    vae = committed_autoencoder()
    captions = measurement.accuracy_captions(224)[::7][:24] + list(measurement.OPEN)
    text = torch.nn.functional.pad(teacher.encode(captions), (0, teacher.SD3_TEXT_WIDTH - teacher.TEXT_WIDTH))
    random, hits, asked = torch.Generator().manual_seed(99), 0, 0
    for caption, words in zip(captions, text, strict=True):
        count = 24 if caption in measurement.OPEN else 4
        noise = teacher.START * torch.randn(count, latent_code.CHANNELS, 8, 8, generator=random)
        x0 = teacher.predict(network, noise, torch.full((count,), teacher.START), words.expand(count, -1, -1))
        readings = detector.read(decode(vae, x0), reader)
        if caption in measurement.OPEN:
            assert {reading["who"] for reading in readings} == set(measurement.OPEN[caption])
        else:
            hits, asked = hits + sum(measurement.matches(reading, caption) for reading in readings), asked + count
    assert hits / asked >= 0.95


@torch.no_grad()
def test_the_committed_autoencoder_writes_and_reads_the_code(reader):
    items = world.draw_items(np.random.RandomState(5), 60)
    codes, vae = latent_code.latents(latent_code.indices(items)), committed_autoencoder()
    written = decode(vae, codes)
    assert measurement.right(detector.read(written, reader), items) >= 0.99
    drawn = np.stack([drawing.paint(item) for item in items])
    assert np.abs(written.astype(int) - drawn).mean() < 6
    pixels = torch.from_numpy(drawn).permute(0, 3, 1, 2) / 127.5 - 1
    assert latent_code.read(vae.encode(pixels).latents)[0] == items


def test_truncated_weights_get_a_sentence(copied, tmp_path):
    for name in weights.PARTS:
        with (copied / name).open("r+b") as file:
            file.truncate(1000)
    with pytest.raises(UserError, match="it is not the file that the record describes; check out"):
        weights.write_checkpoint(tmp_path / "out.safetensors", folder=copied)
    assert not (tmp_path / "out.safetensors").exists()


def test_commit_splits_an_exported_file_and_the_checkpoint_puts_it_together(tmp_path):
    exported = weights.write_checkpoint(tmp_path / "exported.safetensors", untrained=True)
    record = {"start": {"timestep": 720}}
    weights.commit(exported, weights.FOLDER / detector.FILE, record, tmp_path / "parts")
    again = weights.write_checkpoint(tmp_path / "again.safetensors", folder=tmp_path / "parts")
    with safetensors.safe_open(exported, "pt") as first, safetensors.safe_open(again, "pt") as second:
        assert sorted(first.keys()) == sorted(second.keys())
        assert all(torch.equal(first.get_tensor(key), second.get_tensor(key)) for key in first.keys())  # noqa: SIM118
        assert first.metadata() == second.metadata()
    assert weights.read_record(tmp_path / "parts")["sha256"].keys() == set(weights.FILES)
