"""ComfyUI-SNOOPI: negative prompts for one-step models (NASA) and a sampler that runs them as they were trained."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes import SNOOPIExtension

    return SNOOPIExtension()
