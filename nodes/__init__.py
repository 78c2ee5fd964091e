"""The list of nodes."""

from comfy_api.latest import ComfyExtension, io

from .nasa_patch import NASACrossAttentionPatch
from .one_step_sampler import SNOOPIOneStepSampler

NODES: list[type[io.ComfyNode]] = [NASACrossAttentionPatch, SNOOPIOneStepSampler]


class SNOOPIExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
