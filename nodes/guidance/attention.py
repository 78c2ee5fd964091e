"""One call of ComfyUI's attention, made again with other keys and values."""

from typing import NamedTuple

import torch

OVERRIDE = "optimized_attention_override"
NAMES = ("heads", "mask", "attn_precision", "skip_reshape", "skip_output_reshape")
#: ComfyUI's attention functions that compute the exact softmax, as torch's own kernels do.
EXACT = {"attention_basic", "attention_sub_quad", "attention_split", "attention_pytorch", "attention_xformers"}


class Queries(NamedTuple):
    """Some queries of a call.

    Attributes:
        q: in the call's layout.
        batch: their rows of the batch, an index.
        tokens: their tokens.
    """

    q: torch.Tensor
    batch: slice | torch.Tensor
    tokens: slice


class Keys(NamedTuple):
    """Keys and values for the rows of some queries.

    Attributes:
        k, v: in the call's layout.
        tokens: which of the call's tokens they are, for its mask; None for new ones, which it does not hide.
    """

    k: torch.Tensor
    v: torch.Tensor
    tokens: slice | None = None


class Part(NamedTuple):
    """Attention to a part of the keys.

    Attributes:
        z: softmax over these keys alone, times their values: [batch, tokens, heads, channels].
        mass: log of the sum of exp(q k / sqrt(d)) over these keys: fp32, [batch, tokens, heads, 1].
    """

    z: torch.Tensor
    mass: torch.Tensor

    def of(self, tokens: slice) -> "Part":
        return Part(self.z[:, tokens], self.mass[:, tokens])

    def joined(self, other: "Part") -> "Part":
        """Attention to the keys of both."""
        share = (other.mass - self.mass).sigmoid().to(self.z.dtype)
        return Part(torch.lerp(self.z, other.z, share), torch.logaddexp(self.mass, other.mass))


class Attention:
    """A call of `optimized_attention`, as an override of it receives it.

    It attends with what the call would have gone to: an override that was there before, or ComfyUI's function. Every Z
    is [batch, tokens, heads, channels].

    Args:
        function: ComfyUI's.
        options: the transformer_options that the block received.
        arguments, more: what follows q, k and v, by position and by name.
    """

    def __init__(self, function, options, arguments, more):
        more = dict(zip(NAMES, arguments, strict=False)) | more
        self.function, self.before = function, options.get(OVERRIDE)
        self.heads, self.mask = more.pop("heads"), more.pop("mask", None)
        self.more = more | {"transformer_options": options}
        self.heads_first, self.split = more.get("skip_reshape", False), more.get("skip_output_reshape", False)

    def __call__(self, q, k, v, mask=None):
        if self.before is None:
            z = self.function(q, k, v, self.heads, mask=mask, **self.more)
        else:
            z = self.before(self.function, q, k, v, self.heads, mask=mask, **self.more)
        return z.transpose(1, 2) if self.split else z.unflatten(-1, (self.heads, -1))

    def result(self, z):
        """Z as the caller expects it."""
        return z.transpose(1, 2) if self.split else z.flatten(2)

    @property
    def tokens(self) -> int:
        """The dimension of q, k and v in which tokens lie."""
        return 2 if self.heads_first else 1

    def channels(self, q: torch.Tensor) -> int:
        """Of a head."""
        return q.shape[-1] if q.ndim == 4 else q.shape[-1] // self.heads

    def part(self, x: torch.Tensor, where: slice) -> torch.Tensor:
        return x.narrow(self.tokens, where.start, where.stop - where.start)

    def to(self, queries: Queries, *keys: Keys) -> torch.Tensor:
        """Z over all these keys together."""
        k, v = (torch.cat(parts, self.tokens) for parts in zip(*(x[:2] for x in keys), strict=True))
        return self(queries.q, k, v, mask=self._masked(queries, keys))

    def shares(self, queries: Queries, *keys: Keys) -> tuple[torch.Tensor, ...]:
        """What of the softmax goes to each of these keys, fp32, [batch, tokens, heads, 1]: by values of 1 and 0."""
        channels = self.channels(queries.q)
        marked = [x._replace(v=x.v.new_zeros(x.v.shape)) for x in keys]
        for number, x in enumerate(marked):  # in a channel of its own
            x.v.view(*x.v.shape[:-1], -1, channels)[..., number] = 1.0
        return self.to(queries, *marked)[..., : len(keys)].float().split(1, dim=-1)

    def _masked(self, queries, keys):
        mask = self.mask
        if mask is None or all(x.tokens is None for x in keys):
            return None
        mask = mask[queries.batch] if mask.ndim > 2 and mask.shape[0] > 1 else mask
        mask = mask[..., queries.tokens, :] if mask.shape[-2] > 1 else mask
        free = True if mask.dtype == torch.bool else 0.0
        return torch.cat([
            mask.new_full((*mask.shape[:-1], x.k.shape[self.tokens]), free) if x.tokens is None else mask[..., x.tokens]
            for x in keys
        ], dim=-1)  # fmt: skip

    def gives_masses(self, q: torch.Tensor) -> bool:
        """Whether `apart` computes what the call would, which neither is approximate nor has been changed."""
        exact = self.before is None and self.mask is None and self.function.__name__ in EXACT
        return exact and "scale" not in self.more and kernel(q.device, q.dtype, self.channels(q)) != ""

    def apart(self, queries: Queries, keys: Keys) -> Part:
        """By the kernel of torch that also gives the mass."""
        q, k, v = queries.q, keys.k, keys.v
        if not self.heads_first:
            q = q.reshape(*q.shape[:2], self.heads, -1)
            q, k, v = (x.reshape(*x.shape[:2], -1, q.shape[-1]).transpose(1, 2) for x in (q, k, v))
        if k.shape[1] < q.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        z, mass = KERNELS[kernel(q.device, q.dtype, q.shape[-1])](q, k, v)[:2]
        return Part(z.transpose(1, 2), mass[..., : q.shape[2]].transpose(1, 2).unsqueeze(-1))


@torch.compiler.assume_constant_result
def kernel(device: torch.device, dtype: torch.dtype, channels: int) -> str:
    """The one of KERNELS for q, k and v on this device with so many channels in a head; empty for none."""
    if device.type == "cpu":
        return "cpu"
    if device.type != "cuda":
        return ""
    like = torch.empty(1, 1, 8, channels, device=device, dtype=dtype)
    params = torch.backends.cuda.SDPAParams(like, like, like, None, 0.0, False, False)
    if dtype != torch.float32 and torch.backends.cuda.can_use_flash_attention(params):
        return "flash"
    return "efficient" if torch.backends.cuda.can_use_efficient_attention(params) else ""


def _efficient(q, k, v):
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)


#: What of torch gives masses beside Z, for q, k and v [batch, heads, tokens, channels].
KERNELS = {
    "cpu": torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
    "flash": torch.ops.aten._scaled_dot_product_flash_attention,
    "efficient": _efficient,
}
