"""NASA in joint attention: a negative's text goes through the blocks beside the prompt's, block by block.

Where text and picture share one sequence, K- and V- of a layer come from a hidden state of the negative's text that has
been through all blocks before it. A block makes them itself: inside its call of attention, where q, k and v are final
(normed, turned by rope, changed by other packs), its own forward is called once more, on the negative's text alone. The
attention of that second call goes to [negative; picture], with the keys and values that the picture has in the first;
what it returns is the negative's text for the next block. So no forward is copied, and the first call stays as it is:
the prompt's text attends to itself and the picture, and never sees a negative.

For one call of the model, every block gets a bound `forward`, as steering.py's layers do. The way into its attention is
`optimized_attention_override` in the options that it hands to that one call: an override that was there before stays in
use, for the calls of ours too.

A family of joint attention is a file of `layouts` with the functions of every layout, whose layers are the blocks that
the text goes through, in order, and whose `text` is the first block's, or a tuple of that and, for each block after it,
of what takes the place of the text's last tokens there; instead of keys_values, attend and fit it has

    TEXT_FIRST                      whether the text's tokens come before the picture's in attention
    picture(model, x, conds)        where among the image tokens those of the latents are, a slice, if they are not the
                                    first; the others, such as reference pictures and padding, are not steered
    positions(model, tokens, call)  what else so many tokens of a negative need in every block, such as their rope, if
                                    anything
    text_tokens(block, given, call) how many of the tokens in attention are the prompt's text, if not as many as those
                                    of its embedding; given: the arguments of the block's forward by name; call: a Call
    alone(block, given, text, positions)
                                    the arguments to change for the second call, with text [rows, tokens, width] in
                                    place of the prompt's, and no mask; of what lies there for all rows of the batch,
                                    those of the text are taken. A block of two streams gets `no_picture`
    RETURNS_TEXT                    the place of text in what a block of two streams returns, if not 0
    text_of(returned)               only where a block returns its text in another way: the text in that
    forwards = side_stream.forwards
    TEXT_SEES_PICTURE               False only where text sees itself alone, and what the picture sees of it is the same
                                    in every call: `text` then is a tuple of every block's keys and values, each
                                    [batch, 2, heads, tokens, channels], and there is no positions and alone
    POSITIONAL                      only where a block's forward takes *args: the names of those
    handed(arguments, call)         only where a block's forward takes no transformer_options: what it is called with
                                    to bring them to its attention, as options_for_attention's
    AMONG_THE_PICTURE               only where a cond puts tokens among the picture's: its name; `spread` knows where
"""

import dataclasses
import functools
import inspect
from collections.abc import Iterator

import torch

from .attention import OVERRIDE, Attention, Keys, Queries
from .layouts.grid import patches
from .rules import reads, steer_away
from .sight import asked, merged
from .steering import rows


class Call:
    """One call of the model, for all of its blocks.

    Args:
        layout: the file of `layouts` that knows the model.
        model: the diffusion model.
        x: its latents, [batch, channels, (frames,) height, width].
        conds: what else it gets, by ComfyUI's names.
        steered: [batch], not 0 where that row is steered; on the host.
        options: its transformer_options.

    Attributes:
        chunks: which cond each equal part of the batch belongs to: ComfyUI's cond_or_uncond.
        picture: where among the image tokens those of the latents are.
        text_tokens: how many tokens of text came in, 0 without any; a layout may correct it where a block tells.
    """

    def __init__(self, layout, model, x, conds, steered, options):
        self.layout, self.model, self.x, self.conds = layout, model, x, conds
        self.steered, self.options, self.chunks = steered, options, options["cond_or_uncond"]
        if hasattr(layout, "picture"):
            self.picture = layout.picture(model, x, conds)
        else:
            self.picture = slice(0, patches(x, layout.patch(model)))
        context = conds["c_crossattn"]
        self.text_tokens = 0 if context is None else context.shape[1]
        self._rows = {}
        self.rows(len(steered))

    def rows(self, batch: int) -> tuple[slice | torch.Tensor, slice | torch.Tensor | None]:
        """An index of the steered rows of a block's batch, and one of the others; None for none."""
        if batch not in self._rows:
            steered = rows(self.steered, batch, self.chunks) != 0
            self._rows[batch] = tuple(_index(which, self.x.device) for which in (steered, ~steered))
        return self._rows[batch]


class SideStream:
    """The text of a negative on its way through the blocks of one call.

    Args:
        negative: the use of NASA that it belongs to.
        text: the layout's, [1 or batch, tokens, width] or several such.
        alpha: [batch, 1, 1], or [batch, tokens of the picture, 1].
    """

    def __init__(self, negative, text, alpha, call):
        self.blocks, self.norm_limit = negative.blocks, negative.norm_limit
        self.rule, self.adaptive = negative.rule, negative.adaptive
        batch = len(call.steered)
        texts = text if isinstance(text, tuple) else (text,)
        texts = [rows(part, batch, call.chunks)[call.rows(batch)[0]] for part in texts]
        self.alpha, self.keys = alpha, None
        if not getattr(call.layout, "TEXT_SEES_PICTURE", True):
            self.keys = [Keys(*part.unbind(1)) for part in texts]
            return
        text, *self.to_come = texts
        positions = getattr(call.layout, "positions", None)
        self.positions = positions and positions(call.model, text.shape[1], call)
        # A row for each that is steered, and a copy, as blocks may write into it.
        self.text = text.clone(memory_format=torch.contiguous_format)


class JointSteering:
    """What one block needs for one call.

    Args:
        call: the model's.
        layer: the block.
        place: its place among the blocks.
        streams: of every negative that acts here or in a later block, and whether it acts here.
    """

    def __init__(self, call, layer, place, streams):
        self.call, self.layout, self.layer, self.place, self.streams = call, call.layout, layer, place, streams
        self.names = _names(type(layer), getattr(call.layout, "POSITIONAL", ()))
        self.norm_limit = min((s.norm_limit for s, acts in streams if acts and s.norm_limit), default=0.0)
        self.watch = None

    def forwards(self):
        return self.layout.forwards(self.layer)

    def steer(self, given, again, attention, q, k, v) -> torch.Tensor:
        """Z of all tokens, [batch, tokens, heads, channels]; the negatives' texts become the next block's."""
        batch, tokens, keys = q.shape[0], q.shape[attention.tokens], k.shape[attention.tokens]
        text_tokens = getattr(self.layout, "text_tokens", None)
        text_tokens = text_tokens(self.layer, given, self.call) if text_tokens else self.call.text_tokens
        text, image = self._places(text_tokens, keys)
        if text.start == text.stop or image.start == image.stop:
            return attention(q, k, v, mask=attention.mask)
        index, others = self.call.rows(batch)
        prompt_keys, image_keys = (
            Keys(attention.part(k[index], where), attention.part(v[index], where), where) for where in (text, image)
        )
        if tokens < keys:  # text has no queries here
            text, image = slice(0, 0), slice(0, tokens)
        picture = slice(image.start + self.call.picture.start, image.start + self.call.picture.stop)
        negatives = [self._pass(stream, given, again, attention, image_keys, batch) for stream, _ in self.streams]
        acting = [
            (stream, keys, rows(stream.alpha, batch, self.call.chunks)[index].unsqueeze(-1))
            for (stream, acts), keys in zip(self.streams, negatives, strict=True)
            if acts
        ]
        if not acting:
            return attention(q, k, v, mask=attention.mask)
        needs = set().union(*(reads(stream.rule, stream.adaptive) for stream, *_ in acting))
        queries = Queries(attention.part(q[index], picture), index, picture)
        if needs == {"text"} or not attention.gives_masses(q):
            z = attention(q, k, v, mask=attention.mask)
            seen = [asked(attention, needs, queries, prompt_keys, keys, image_keys) for _, keys, _ in acting]
        else:
            images = Queries(attention.part(q[index], image), index, image)
            parts = [attention.apart(images, keys) for keys in (image_keys, prompt_keys)]
            z_image = parts[0].joined(parts[1]).z
            z = z_image.new_empty(batch, tokens, *z_image.shape[2:])
            z[index, image] = z_image
            if text.start < text.stop:
                z[index, text] = attention(attention.part(q[index], text), k[index], v[index])
            if others is not None:
                z[others] = attention(q[others], k[others], v[others])
            parts = [part.of(self.call.picture) for part in parts]
            seen = [merged(needs, parts[1], attention.apart(queries, keys), parts[0]) for _, keys, _ in acting]
        negatives = [
            (sight, alpha, stream.rule, stream.adaptive) for sight, (stream, _, alpha) in zip(seen, acting, strict=True)
        ]
        away = steer_away(z[index, picture], negatives, self.norm_limit)
        if self.watch is not None:
            places = [rows(place, batch, self.call.chunks)[index].squeeze(-1) for place in self.watch.places]
            call = attention, queries, acting[0][1], image_keys
            self.watch.saw(self.layer, lambda: call, z[index, picture], away, places)
        z[index, picture] = away
        return z

    def _places(self, text: int, tokens: int) -> tuple[slice, slice]:
        """Where in so many tokens of attention text and image are."""
        if self.layout.TEXT_FIRST:
            return slice(0, text), slice(text, tokens)
        return slice(tokens - text, tokens), slice(0, tokens - text)

    def _pass(self, stream, given, again, attention, image_keys, batch) -> Keys:
        """K- and V- of this block; the stream's text becomes the next block's."""
        if stream.keys is not None:
            return stream.keys[self.place]
        (index, others), length, found = self.call.rows(batch), stream.text.shape[1], []

        def override(function, q, k, v, *arguments, **more):
            if found:  # a second attention over the image alone
                return function(q, k, v, *arguments, **more)
            text, image = self._places(length, q.shape[attention.tokens])
            keys = Keys(attention.part(k, text), attention.part(v, text))
            found.append(keys)
            queries = Queries(attention.part(q, text), index, text)
            z = attention.to(queries, keys, image_keys._replace(tokens=None))
            nothing = z.new_zeros(z.shape[0], image.stop - image.start, *z.shape[2:])
            return attention.result(torch.cat((z, nothing) if self.layout.TEXT_FIRST else (nothing, z), dim=1))

        changes = self.layout.alone(self.layer, given, stream.text, stream.positions)
        options = {**(given.get("transformer_options") or {}), "patches": {}, OVERRIDE: override}
        if others is not None:
            changes = {name: _of_rows(value, index, batch) for name, value in (given | changes).items()}
        stream.text = self._text_of(again(changes | {"transformer_options": options}))
        if stream.to_come:
            last = stream.to_come.pop(0)
            stream.text = torch.cat([stream.text[:, : -last.shape[1]], last], dim=1)
        return found[0]

    def _text_of(self, returned) -> torch.Tensor | None:
        """None after a last block that has no more use for text."""
        if hasattr(self.layout, "text_of"):
            return self.layout.text_of(returned)
        return returned[getattr(self.layout, "RETURNS_TEXT", 0)] if isinstance(returned, tuple) else returned


def beside(block, *args, **kwargs):
    """The forward of a block."""
    nasa, forward = block.nasa, block.nasa_before
    given = dict(zip(nasa.names, args, strict=False)) | kwargs
    options = given.get("transformer_options") or {}
    asked, handed = [], getattr(nasa.layout, "handed", None)

    def again(changes):
        changed = given | changes if handed is None else handed(given | changes, nasa.call)
        return forward(*[changed.pop(name) for name in nasa.names[: len(args)]], **changed)

    def override(function, q, k, v, *arguments, **more):
        attention = Attention(function, options, arguments, more)
        if asked:  # a second attention over the image alone
            return attention.result(attention(q, k, v, mask=attention.mask))
        asked.append(True)
        return attention.result(nasa.steer(given, again, attention, q, k, v))

    returned = again({"transformer_options": {**options, OVERRIDE: override}})
    if not asked and getattr(forward, "__func__", None) is type(block).forward:
        raise RuntimeError(
            f"NASA found no attention in {type(block).__name__}, which this version of ComfyUI must have changed: "
            f"remove the NASA patch, or update this node pack."
        )
    return returned


def beside_each_other(call: Call, blocks: dict[str, list], streams: list[SideStream]) -> Iterator[JointSteering]:
    """What the blocks need that these streams go through: up to the last that each acts in."""
    last = [max(place for place, name in enumerate(blocks) if name in stream.blocks) for stream in streams]
    for place, (name, layers) in enumerate(blocks.items()):
        here = [(s, name in s.blocks) for s, end in zip(streams, last, strict=True) if place <= end]
        for layer in layers if here else ():
            yield JointSteering(call, layer, place, here)


def forwards(block):
    return [(block, beside)]


def no_picture(text: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """One token of zeros in the width of these image tokens: blocks of two streams do not take none."""
    return like.new_zeros(text.shape[0], 1, like.shape[-1])


def _of_rows(value, index, batch):
    """An argument of a block for some rows of its batch alone."""
    if torch.is_tensor(value):
        return value[index] if value.ndim > 0 and value.shape[0] == batch else value
    if isinstance(value, (tuple, list)):
        return type(value)(_of_rows(part, index, batch) for part in value)
    if dataclasses.is_dataclass(value):
        return type(value)(*(_of_rows(part, index, batch) for part in vars(value).values()))
    return value


@functools.cache
def _names(block: type, positional: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the arguments that a block's forward takes by position."""
    parameters = list(inspect.signature(block.forward).parameters.values())[1:]
    return positional or tuple(parameter.name for parameter in parameters)


def _index(which: torch.Tensor, device: torch.device) -> slice | torch.Tensor | None:
    found = which.nonzero().flatten()
    if len(found) == 0:
        return None
    first, last = int(found[0]), int(found[-1]) + 1
    return slice(first, last) if last - first == len(found) else found.to(device)
