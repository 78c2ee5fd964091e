"""The list of nodes."""

from comfy_api.latest import ComfyExtension, io

from .alpha_sweep import NASAAlphaSweep
from .attention_map import NASAAttentionMap
from .checkpoint_loader import SNOOPICheckpointLoader
from .model_sampling import SNOOPIModelSampling
from .nasa_patch import NASACrossAttentionPatch
from .one_step_sampler import SNOOPIOneStepSampler
from .scheduler import SNOOPIOneStepScheduler

NODES: list[type[io.ComfyNode]] = [
    NASACrossAttentionPatch,
    SNOOPIOneStepSampler,
    SNOOPIModelSampling,
    SNOOPIOneStepScheduler,
    SNOOPICheckpointLoader,
    NASAAlphaSweep,
    NASAAttentionMap,
]


class SNOOPIExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
