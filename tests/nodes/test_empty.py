"""A negative prompt left empty or zeroed out is no negative: the graph or the embedding tells, and the node says so."""

from types import SimpleNamespace

import comfy.model_management
import comfy_extras.nodes_cond
import comfy_extras.nodes_hooks
import comfy_extras.nodes_primitive
import comfy_extras.nodes_string
import pytest
import torch


@pytest.fixture(autouse=True)
def known_nodes(monkeypatch):
    """The core's nodes, those of its extras among them, which a server loads when it starts."""
    import nodes

    extras = {
        "PrimitiveStringMultiline": comfy_extras.nodes_primitive.StringMultiline,
        "PrimitiveString": comfy_extras.nodes_primitive.String,
        "StringConcatenate": comfy_extras.nodes_string.StringConcatenate,
        "ConditioningSetDefaultCombine": comfy_extras.nodes_hooks.ConditioningSetDefaultAndCombine,
        "CLIPTextEncodeControlnet": comfy_extras.nodes_cond.CLIPTextEncodeControlnet,
    }
    for name, node in extras.items():
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, node)
    yield
    comfy.model_management.unload_all_models()  # with a preset on it


def encode(text):
    return {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": ["clip", 0]}}


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


EMPTY = {
    "empty": [encode("")],
    "blanks": [encode(" \n\t ")],
    "weights of nothing": [encode("( :1.2)()")],
    "a primitive": [encode(["1", 0]), node("PrimitiveStringMultiline", value=" ")],
    "through an area": [node("ConditioningSetArea", conditioning=["1", 0], width=64, height=64, x=0, y=0, strength=1.0),
                        encode("")],
    "through a mask": [node("ConditioningSetMask", conditioning=["1", 0], mask=["9", 0], strength=1.0,
                            set_cond_area="default"), encode("")],
    "through steps": [node("ConditioningSetTimestepRange", conditioning=["1", 0], start=0.0, end=0.5), encode("")],
    "through several": [node("ConditioningSetTimestepRange", conditioning=["1", 0], start=0.0, end=0.5),
                        node("ConditioningSetAreaStrength", conditioning=["2", 0], strength=0.5), encode("")],
    "two, concatenated": [node("ConditioningConcat", conditioning_to=["1", 0], conditioning_from=["2", 0]),
                          encode(""), encode("")],
    "a ControlNet on both": [node("ControlNetApplyAdvanced", positive=["1", 0], negative=["2", 0],
                                  control_net=["9", 0], image=["9", 1], strength=1.0, start_percent=0.0,
                                  end_percent=1.0), encode("a cat"), encode("")],
    "for a ControlNet too": [node("CLIPTextEncodeControlnet", clip=["clip", 0], conditioning=["1", 0], text=""),
                             encode("")],
}  # fmt: skip
#: The link's output is the second of a pair.
SECOND = ("a ControlNet on both",)

NOT_EMPTY = {
    "a word": [encode("red")],
    "a comma": [encode(",")],
    "a text from elsewhere": [encode(["1", 0]), node("StringConcatenate", string_a="", string_b="", delimiter="")],
    "a text of a primitive": [encode(["1", 0]), node("PrimitiveString", value="red")],
    "a text of no node": [encode(["9", 0])],
    "a text that is none": [encode(None)],
    "no encoder is known": [node("SomebodysEncoder", text="", clip=["clip", 0])],
    "through a node that is not known": [node("SomebodysNode", conditioning=["1", 0]), encode("")],
    "an empty text added to another": [node("ConditioningConcat", conditioning_to=["1", 0], conditioning_from=["2", 0]),
                                       encode(""), encode("red")],
    "averaged with another": [node("ConditioningAverage", conditioning_to=["1", 0], conditioning_from=["2", 0],
                                   conditioning_to_strength=0.5), encode(""), encode("red")],
    "a style added": [node("StyleModelApply", conditioning=["1", 0], style_model=["9", 0],
                           clip_vision_output=["9", 0], strength=1.0, strength_type="multiply"), encode("")],
    "a picture added": [node("unCLIPConditioning", conditioning=["1", 0], clip_vision_output=["9", 0], strength=1.0,
                             noise_augmentation=0.0), encode("")],
    "a circle": [node("ConditioningSetAreaStrength", conditioning=["0", 0], strength=0.5)],
    "a link to nowhere": [node("ConditioningSetAreaStrength", conditioning=["99", 0], strength=0.5)],
    "the positive of a pair": [node("ControlNetApplyAdvanced", positive=["1", 0], negative=["2", 0],
                                    control_net=["9", 0], image=["9", 1], strength=1.0, start_percent=0.0,
                                    end_percent=1.0), encode("a cat"), encode("")],
    "inputs of junk": [node("CLIPTextEncode", text=["1"], clip=[None, "x"])],
    "no inputs": [{"class_type": "CLIPTextEncode"}],
    "no class": [{"inputs": {"text": ""}}],
}  # fmt: skip


class Graph:
    """ComfyUI's DynamicPrompt, which knows nodes made by expansion too."""

    def __init__(self, nodes):
        from comfy_execution.graph import DynamicPrompt

        self.prompt = DynamicPrompt({})
        self.prompt.ephemeral_prompt = nodes


def in_graph(pack_node, chain, output=0, dynamic=False, **inputs):
    """The pack's node as ComfyUI clones it for a run; its negative is linked to the first node of the chain."""
    graph = {str(n): part for n, part in enumerate(chain)} | {"us": node("Us", negative=["0", output])}
    hidden = {"prompt": graph, "unique_id": "us", "dynprompt": Graph(graph).prompt if dynamic else None}

    class Clone(pack_node):
        pass

    Clone.hidden = SimpleNamespace(**hidden)
    return Clone.execute(**inputs)


@pytest.fixture
def nasa(pack, model):
    def nasa(chain, negative, **more):
        return in_graph(pack.nasa_patch.NASACrossAttentionPatch, chain, model=model, negative=negative, alpha=0.4,
                        start_percent=0.0, end_percent=1.0, **more)  # fmt: skip

    return nasa


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_prompt_switches_nasa_off(pack, model, text, sample, nasa, name, dynamic):
    """Bit-identical to the model without the node, and the node says so."""
    out = nasa(EMPTY[name], text(2), output=int(name in SECOND), dynamic=dynamic)
    assert torch.equal(sample(out.args[0], text(1)), sample(model, text(1)))
    assert not out.args[0].get_wrappers("sampler_sample", pack.payload.KEY)
    assert out.ui.as_dict()["text"] == ("The negative prompt is empty, so nothing is steered.",)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", NOT_EMPTY)
def test_what_is_not_known_to_be_empty_steers(pack, model, text, sample, nasa, name, dynamic):
    out = nasa(NOT_EMPTY[name], text(2), dynamic=dynamic)
    assert torch.equal(
        sample(out.args[0], text(1)), sample(pack.payload.patch(model, text(2), 0.4, rule="auto"), text(1))
    )
    assert out.ui is None


@pytest.mark.parametrize("kind", ["ConditioningCombine", "ConditioningSetDefaultCombine"])
def test_the_empty_ones_of_several_are_left_out(pack, model, text, sample, nasa, kind):
    names = ("conditioning_1", "conditioning_2") if kind == "ConditioningCombine" else ("cond", "cond_DEFAULT")
    chain = [node(kind, **{names[0]: ["1", 0], names[1]: ["2", 0]}), encode("red"), encode("")]
    out = nasa(chain, text(2) + text(3))
    assert torch.equal(
        sample(out.args[0], text(1)), sample(pack.payload.patch(model, text(2), 0.4, rule="auto"), text(1))
    )
    assert out.ui.as_dict()["text"] == ("1 of 2 negative prompts are empty and left out.",)
    out = nasa(chain, text(2) + text(3) + text(4))  # something added one that the graph does not tell of
    all_of_them = pack.payload.patch(model, text(2) + text(3) + text(4), 0.4, rule="auto")
    assert torch.equal(sample(out.args[0], text(1)), sample(all_of_them, text(1)))


def test_a_cleared_box_takes_an_earlier_negative_of_the_name_away(pack, model, text, sample, nasa):
    before = pack.payload.patch(model, text(5), 0.4, rule="auto")
    execute = pack.nasa_patch.NASACrossAttentionPatch
    out = in_graph(execute, [encode("")], model=before, negative=text(2), alpha=0.4, start_percent=0.0, end_percent=1.0)
    assert torch.equal(sample(out.args[0], text(1)), sample(model, text(1)))


def zeroed(conditioning):
    import nodes

    return nodes.ConditioningZeroOut().zero_out(conditioning)[0]


def test_a_zeroed_conditioning_does_nothing_and_says_so(pack, model, text, sample):
    out = pack.nasa_patch.NASACrossAttentionPatch.execute(model, zeroed(text(2)), 0.4, 0.0, 1.0)
    assert torch.equal(sample(out.args[0], text(1)), sample(model, text(1)))
    assert out.ui.as_dict()["text"] == ("The negative prompt is zeroed out, so nothing is steered.",)
    out = pack.nasa_patch.NASACrossAttentionPatch.execute(model, text(2) + zeroed(text(3)), 0.4, 0.0, 1.0)
    assert torch.equal(
        sample(out.args[0], text(1)), sample(pack.payload.patch(model, text(2), 0.4, rule="auto"), text(1))
    )


@pytest.mark.parametrize("kind", ["empty", "zeroed"])
def test_the_one_step_sampler_says_so_too(pack, model, text, kind):
    execute = pack.one_step_sampler.SNOOPIOneStepSampler
    inputs = {"model": model, "positive": text(1), "latent_image": {"samples": torch.zeros(2, 4, 8, 8)}, "seed": 3,
              "preset": "sd", "alpha": 0.4}  # fmt: skip
    with torch.inference_mode():
        plain = execute.execute(**inputs)
        if kind == "empty":
            latent, info = in_graph(execute, [encode("")], negative=text(2), **inputs).args
        else:
            latent, info = execute.execute(negative=zeroed(text(2)), **inputs).args
    assert torch.equal(latent["samples"], plain.args[0]["samples"])
    what = "zeroed out" if kind == "zeroed" else kind
    assert f"The negative prompt is {what}, so nothing is steered." in info and "Negative strength" not in info


def test_the_node_shows_it_on_itself(pack, model, text, monkeypatch):
    shown = []
    monkeypatch.setattr(pack.nasa_patch, "show", lambda node, text: shown.append(text))
    pack.nasa_patch.NASACrossAttentionPatch.execute(model, zeroed(text(2)), 0.4, 0.0, 1.0)
    pack.nasa_patch.NASACrossAttentionPatch.execute(model, text(2), 0.4, 0.0, 1.0)
    assert shown == ["The negative prompt is zeroed out, so nothing is steered."]
