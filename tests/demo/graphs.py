"""The graphs of workflows/, with other prompts, seeds and numbers: one for each way to use a negative prompt."""

from pathlib import Path

from comfyui import workflow

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
NASA_WORKFLOW = WORKFLOWS / "91 Demo model, with and without.json"
CFG_WORKFLOW = WORKFLOWS / "92 Demo model, CFG.json"
SWEEP_WORKFLOW = WORKFLOWS / "93 Demo model, alpha sweep.json"
MAP_WORKFLOW = WORKFLOWS / "08 Attention map.json"
METHODS = ("none", "cfg", "embedding", "nasa")
MAPS = {"overlay": 0, "mask": 1}  # outputs of the attention map, by which the picture without is looked at
CFG_SCALE = 2.0


class Graphs:
    """Graphs in the API form for one server, whose node schemas are ``schemas``."""

    def __init__(self, schemas: dict):
        self.nasa = workflow.load(NASA_WORKFLOW, schemas)
        self.cfg = workflow.load(CFG_WORKFLOW, schemas)

    def of(self, method: str, prompt: str, negative: str, seed: int, count: int, alpha: float) -> dict:
        """A graph with one output node that makes ``count`` pictures; all methods draw the same noise from a seed."""
        if method == "cfg":
            chosen, output = self.cfg, "With CFG"
            sampler = {"SamplerCustom": {"noise_seed": seed, "cfg": CFG_SCALE}}
        else:
            chosen, output = self.nasa, "With the negative prompt" if method == "nasa" else "Without"
            output = "Where it acts" if method in MAPS else output
            sampler = {"SNOOPIOneStepSampler": {"seed": seed}, "NASACrossAttentionPatch": {"alpha": alpha}}
        texts = {"Prompt": {"text": prompt}, "Negative prompt": {"text": negative}}
        size = {"EmptyLatentImage": {"batch_size": count}, "ImageScaleBy": {"scale_by": 1.0}}
        graph = workflow.with_values(chosen, **size, **texts, **sampler)
        if method == "embedding":
            self.subtract_embedding(graph, alpha)
        if method in MAPS:
            self.add_map(graph, negative, MAPS[method])
        return workflow.only(graph, output)

    @staticmethod
    def subtract_embedding(graph: dict, strength: float) -> None:
        """Put the demo's own node between the prompts and the sampler."""
        ids = {node["_meta"]["title"]: node_id for node_id, node in graph.items()}
        graph["subtraction"] = {
            "class_type": "EmbeddingSubtraction",
            "inputs": {
                "positive": [ids["Prompt"], 0],
                "negative": [ids["Negative prompt"], 0],
                "strength": strength,
            },
            "_meta": {"title": "Embedding subtraction"},
        }
        graph[ids["One step, without"]]["inputs"]["positive"] = ["subtraction", 0]

    @staticmethod
    def add_map(graph: dict, word: str, output: int) -> None:
        """Where in the picture without the negative prompt the steered model finds a word of it."""
        ids = {node["_meta"]["title"]: node_id for node_id, node in graph.items()}
        (loader,) = (name for name, node in graph.items() if node["class_type"] == "CheckpointLoaderSimple")
        (patch,) = (name for name, node in graph.items() if node["class_type"] == "NASACrossAttentionPatch")
        inputs = {
            "model": [patch, 0], "positive": [ids["Prompt"], 0], "latent_image": [ids["One step, without"], 0],
            "image": graph[ids["Without"]]["inputs"]["images"], "clip": [loader, 1], "word": word,
        }  # fmt: skip
        graph["map"] = {"class_type": "NASAAttentionMap", "inputs": inputs, "_meta": {"title": "Map"}}
        shown = ["map", 0]
        if output == MAPS["mask"]:
            graph["mask"] = {"class_type": "MaskToImage", "inputs": {"mask": ["map", 1]}, "_meta": {"title": "Mask"}}
            shown = ["mask", 0]
        inputs = {"images": shown, "filename_prefix": "snoopi/map"}
        graph["shown"] = {"class_type": "SaveImage", "inputs": inputs, "_meta": {"title": "Where it acts"}}
