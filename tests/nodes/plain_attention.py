"""softmax(QK^T / sqrt(d))V and merging of heads, written out."""


def plain_attention(q, k, v, heads):
    """Z [batch, queries, channels] of q [batch, queries, channels] and k, v [batch, keys, channels]."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    z = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
    return z.transpose(1, 2).flatten(2)
