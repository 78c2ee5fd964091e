"""Runs inside ComfyUI's own interpreter, never in the trainer: loads an exported file and makes its steps.

    python -c "$(cat in_comfyui.py)" REQUEST.json

The request names the checkout, the file, its layout, its timesteps, and two .npz files: inputs (noises, one a step,
text, perhaps pooled, and for a whole checkpoint latent and the tokens of each text encoder) and outputs (x0, picture,
text, pooled).
"""

import json
import sys

with open(sys.argv[1], encoding="utf-8") as file:
    REQUEST = json.load(file)
# fp32 everywhere, so that what differs is the file and not the arithmetic
sys.argv = ["main.py", "--cpu", "--force-fp32", "--fp32-vae", "--fp32-text-enc"]
sys.path.insert(0, REQUEST["comfyui"])

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management  # noqa: E402
import comfy.model_sampling  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import numpy  # noqa: E402
import torch  # noqa: E402

PREDICTIONS = {
    "v_prediction": comfy.model_sampling.V_PREDICTION,  # before EPS, of which it is a kind
    "epsilon": comfy.model_sampling.EPS,
    "flow-": comfy.model_sampling.CONST,
}


def load():
    """The model patcher, text encoder and autoencoder; the last two only for a checkpoint."""
    clip = vae = None
    if REQUEST["layout"] == "checkpoint":
        model, clip, vae = comfy.sd.load_checkpoint_guess_config(REQUEST["file"], output_vae=True, output_clip=True)[:3]
    else:
        model = comfy.sd.load_diffusion_model(REQUEST["base"] or REQUEST["file"])
    if REQUEST["layout"] == "lora":
        lora = comfy.utils.load_torch_file(REQUEST["file"], safe_load=True)
        model, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    return model, clip, vae


@torch.inference_mode()
def main():
    given = {name: torch.from_numpy(array) for name, array in numpy.load(REQUEST["inputs"]).items()}
    model, clip, vae = load()
    comfy.model_management.load_models_gpu([model])
    network, sampling = model.model, model.model.model_sampling
    prediction = next((name for name, kind in PREDICTIONS.items() if isinstance(sampling, kind)), "another")
    if prediction != REQUEST["prediction"]:  # what a stock loader guessed wrong, a node sets right
        right = type("Right", (comfy.model_sampling.ModelSamplingDiscrete, PREDICTIONS[REQUEST["prediction"]]), {})
        network.model_sampling = sampling = right(model.model.model_config)
    is_flow = prediction == "flow-"  # there sigma is t
    x0, pooled = torch.zeros_like(given["noises"][0]), {}
    if "pooled" in given:
        height, width = (8 * side for side in x0.shape[-2:])
        pooled["y"] = network.encode_adm(pooled_output=given["pooled"], height=height, width=width)
    for step, (timestep, noise) in enumerate(zip(REQUEST["timesteps"], given["noises"], strict=True)):
        sigma = torch.tensor([timestep / 1000]) if is_flow else sampling.sigmas[timestep].view(1)
        x = sampling.noise_scaling(sigma, noise.clone(), x0, step == 0 and REQUEST["noise"] == "unit")
        x0 = network.apply_model(x, sigma, c_crossattn=given["text"], **pooled).float()
    found = {"x0": x0.numpy()}
    if vae is not None:
        found["picture"] = vae.decode(network.latent_format.process_out(given["latent"])).float().numpy()
    if clip is not None:
        ids = {name.removeprefix("tokens_"): array for name, array in given.items() if name.startswith("tokens_")}
        first = next(iter(ids.values()))
        tokens = {kind: [[(int(id), 1.0) for id in ids.get(kind, first)[0]]] for kind in clip.tokenize("a")}
        text, pooled = clip.encode_from_tokens(tokens, return_pooled=True)
        found |= {"text": text.float().numpy()} | ({"pooled": pooled.float().numpy()} if "pooled" in given else {})
    told = {
        "version": getattr(__import__("comfyui_version"), "__version__", "of unknown version"),
        "prediction": prediction,
        "model": type(network.model_config).__name__,
        "latent_scale": network.latent_format.scale_factor,
    }
    found["told"] = numpy.array(json.dumps(told))
    numpy.savez(REQUEST["outputs"], **found)


main()
