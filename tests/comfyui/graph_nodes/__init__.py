"""Nodes for the test server alone, of the kinds that other packs have: switches, LoRA stacks, pipes, loops."""

import comfy.sd
import comfy.utils
import folder_paths
from comfy_execution.graph_utils import GraphBuilder


class Anything(str):
    """A type that is equal to every other, as many packs have one."""

    def __ne__(self, other):
        return False

    __eq__ = str.__eq__
    __hash__ = str.__hash__


class AnyInputs(dict):
    """Inputs of any name."""

    def __contains__(self, name):
        return True

    def __getitem__(self, name):
        return (Anything("*"),)


def with_lora(model, name, strength):
    lora = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("loras", name), safe_load=True)
    return comfy.sd.load_lora_for_models(model, None, lora, strength, 0)[0]


class Node:
    FUNCTION = "run"
    RETURN_TYPES = ("MODEL",)
    OPTIONAL = {}

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": cls.REQUIRED, "optional": cls.OPTIONAL}


class TestAnySwitch(Node):
    REQUIRED = {"select": ("INT", {})}
    OPTIONAL = AnyInputs()
    RETURN_TYPES = (Anything("*"),)

    def run(self, select, **inputs):
        return (inputs[f"any_{select}"],)


class TestReroute(Node):
    REQUIRED = {"": (Anything("*"),)}
    RETURN_TYPES = (Anything("*"),)

    def run(self, **inputs):
        return (inputs[""],)


class TestOtherName(Node):
    """A link of another name, and a text that happens to name a file."""

    REQUIRED = {"diffusion": ("MODEL",), "note": ("STRING", {})}

    def run(self, diffusion, note):
        return (diffusion,)


class TestPowerLora(Node):
    REQUIRED = {"model": ("MODEL",)}
    OPTIONAL = AnyInputs()

    def run(self, model, **loras):
        for lora in loras.values():
            if lora["on"] and lora["strength"]:
                model = with_lora(model, lora["lora"], lora["strength"])
        return (model,)


class TestLoraStack(Node):
    REQUIRED = {"lora_name_1": ("STRING", {}), "model_weight_1": ("FLOAT", {}), "switch_1": (["On", "Off"],)}
    RETURN_TYPES = ("LORA_STACK",)

    def run(self, lora_name_1, model_weight_1, switch_1):
        return ([(lora_name_1, model_weight_1)] if switch_1 == "On" else [],)


class TestApplyLoraStack(Node):
    REQUIRED = {"model": ("MODEL",), "lora_stack": ("LORA_STACK",)}

    def run(self, model, lora_stack):
        for name, strength in lora_stack:
            model = with_lora(model, name, strength)
        return (model,)


class TestJoin(Node):
    REQUIRED = {"one": ("STRING", {}), "two": ("STRING", {})}
    RETURN_TYPES = ("STRING",)

    def run(self, one, two):
        return (one + two,)


class TestLoadByText(Node):
    REQUIRED = {"name": ("STRING", {})}

    def run(self, name):
        return (comfy.sd.load_diffusion_model(folder_paths.get_full_path_or_raise("diffusion_models", name)),)


class TestToPipe(Node):
    REQUIRED = {"model": ("MODEL",)}
    RETURN_TYPES = ("TEST_PIPE",)

    def run(self, model):
        return ((model,),)


class TestFromPipe(Node):
    REQUIRED = {"pipe": ("TEST_PIPE",)}

    def run(self, pipe):
        return pipe


class TestRepeatLora(Node):
    """Made of other nodes, as loops are."""

    REQUIRED = {"model": ("MODEL",), "lora_name": ("STRING", {}), "times": ("INT", {})}

    def run(self, model, lora_name, times):
        graph = GraphBuilder()
        for _ in range(times):
            model = graph.node("LoraLoaderModelOnly", model=model, lora_name=lora_name, strength_model=0.5).out(0)
        return {"result": (model,), "expand": graph.finalize()}


class TestInLoop(Node):
    """A loop's body with our node in it; what it works on is handed over as it is, or as a link."""

    REQUIRED = {"model": ("MODEL", {"rawLink": True}), "reroute": ("BOOLEAN", {})}
    RETURN_TYPES = ("STRING",)

    def run(self, model, reroute):
        graph = GraphBuilder()
        model = graph.node("TestReroute", **{"": model}).out(0) if reroute else model
        return {
            "result": (graph.node("SNOOPIModelSampling", model=model, preset="auto").out(1),),
            "expand": graph.finalize(),
        }


class TestInLoopByValue(Node):
    REQUIRED = {"model": ("MODEL",)}
    RETURN_TYPES = ("STRING",)

    def run(self, model):
        graph = GraphBuilder()
        opened = graph.node("TestReroute", **{"": model}).out(0)
        return {
            "result": (graph.node("SNOOPIModelSampling", model=opened, preset="auto").out(1),),
            "expand": graph.finalize(),
        }


NODE_CLASS_MAPPINGS = {
    name: kind for name, kind in globals().items() if name.startswith("Test") and isinstance(kind, type)
}
