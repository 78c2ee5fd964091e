"""The graphs of workflows/, with other prompts, seeds and numbers: one for each way to use a negative prompt."""

from pathlib import Path

from comfyui import workflow

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
NASA_WORKFLOW = WORKFLOWS / "91 Demo model, with and without.json"
CFG_WORKFLOW = WORKFLOWS / "92 Demo model, CFG.json"
METHODS = ("none", "cfg", "embedding", "nasa")
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
            sampler = {"SNOOPIOneStepSampler": {"seed": seed}, "NASACrossAttentionPatch": {"alpha": alpha}}
        texts = {"Prompt": {"text": prompt}, "Negative prompt": {"text": negative}}
        size = {"EmptyLatentImage": {"batch_size": count}, "ImageScaleBy": {"scale_by": 1.0}}
        graph = workflow.with_values(chosen, **size, **texts, **sampler)
        if method == "embedding":
            self.subtract_embedding(graph, alpha)
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
