"""Chroma and Chroma Radiance."""

import torch

from .explicit import normed, patchified, unpatchified
from .flux import flux_blocks


def chroma(network, steer, x, timestep, context, guidance=None, attention_mask=None, transformer_options=None, **_):
    from comfy.ldm.flux.layers import ModulationOut, timestep_embedding

    params = network.params
    image, places, grid = patchified(x, network.patch_size)
    count = image.shape[1]
    asked = torch.cat([timestep_embedding(timestep, 16), timestep_embedding(guidance, 16).expand(len(x), -1)], dim=1)
    rows = timestep_embedding(torch.arange(344), 32).expand(len(x), -1, -1)
    table = network.distilled_guidance_layer(torch.cat([asked[:, None].expand(-1, 344, -1), rows], dim=2))

    def mods(place):
        """Three rows of the table each: all single blocks, then the image's of all double ones, then the text's."""
        part, number = place[:6], int(place[6:])
        if part == "single":
            first = [3 * number] * 2
        else:
            image, text = (3 * params.depth_single_blocks + 6 * (part * params.depth + number) for part in (0, 1))
            first = [image, image + 3, text, text + 3]
        return [ModulationOut(*(table[:, row + n, None] for n in range(3))) for row in first]

    def text_ids(text):
        ids = torch.zeros(text.shape[1], 3)
        if getattr(params, "use_sequential_txt_ids", False):
            ids[:, 0] = torch.arange(text.shape[1])
        return ids

    if hasattr(network, "img_in_patch"):  # Radiance, which hands a picture of whole patches on to its last layers
        pixels = unpatchified(
            image, network.patch_size, grid, [grid[0] * network.patch_size, grid[1] * network.patch_size]
        )
        image = network.img_in(pixels)
    else:
        image = network.img_in(image)
    texts = [network.txt_in(text.expand(len(x), -1, -1)) for text in (context, *steer.contexts)]
    ids = torch.nn.functional.pad(places, (1, 0)).float()
    image = flux_blocks(network, steer, image, ids, slice(0, count), texts, text_ids, mods)
    if hasattr(network, "img_in_patch"):
        return network.forward_nerf(pixels, image, params)[..., : x.shape[-2], : x.shape[-1]]
    shift, scale = table[:, -2, None], table[:, -1, None]
    image = network.final_layer.linear(normed(image) * (1 + scale) + shift)
    return unpatchified(image, network.patch_size, grid, x.shape)
