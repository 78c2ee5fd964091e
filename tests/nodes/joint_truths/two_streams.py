"""Blocks of two streams, as Qwen-Image and others have them."""

import torch

from .explicit import attend, merged


def two_streams(blocks, steer, image, texts, count, mods, qkv, projections):
    """The image after these blocks, of which the first `count` tokens are the picture's.

    Args:
        mods: block -> shift, scale, gate and the MLP's of the image, and the six of the text.
        qkv: (attention, x, text) -> q, k and v of the image, or of a text, which x is made of.
        projections: attention -> of the image, of the text.
    """
    for number, block in enumerate(blocks):
        (shift, scale, gate, shift2, scale2, gate2), mods_text = mods(block)
        of_image, of_text = projections(block.attn)
        qi, ki, vi = qkv(block.attn, block.img_norm1(image) * (1 + scale) + shift, None)
        pairs = [qkv(block.attn, block.txt_norm1(text) * (1 + mods_text[1]) + mods_text[0], text) for text in texts]
        z = steer.z(str(number), qi[:, :, :count], pairs[0][1:], (ki, vi), [pair[1:] for pair in pairs[1:]])
        references = attend(qi[:, :, count:], (*pairs[0][1:], 0), (ki, vi, 0))
        own = [attend(q, (k, v, 0), (ki, vi, 0)) for q, k, v in pairs]
        image = image + gate * of_image(merged(torch.cat([z, references], dim=2)))
        image = image + gate2 * block.img_mlp(block.img_norm2(image) * (1 + scale2) + shift2)
        texts = [text + mods_text[2] * of_text(merged(z)) for text, z in zip(texts, own, strict=True)]
        shift, scale, gate = mods_text[3:]
        texts = [text + gate * block.txt_mlp(block.txt_norm2(text) * (1 + scale) + shift) for text in texts]
    return image
