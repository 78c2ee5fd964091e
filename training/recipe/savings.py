"""The settings that save memory: what a run that has too little is told."""

from .config import Config


def remedies(config: Config) -> str:
    """Those that are not set yet, the most helpful first, as the end of a sentence."""
    helpful = {
        "gradient_checkpointing: true": not config.gradient_checkpointing,
        f"micro_batch: {max(1, (config.micro_batch or config.batch_size) // 4)}": config.micro_batch != 1,
        "mixed_precision: bf16": config.mixed_precision == "no",
        "optimizer: adamw_8bit": config.optimizer == "adamw",
        "student.ema_device: cpu": config.student.ema_decay is not None and config.student.ema_device == "same",
        "student.lora: {rank: 64}": config.student.lora is None,
    }
    untried = [setting for setting, helps in helpful.items() if helps]
    return "set " + ", then ".join(f"`{setting}`" for setting in untried) if untried else "a larger GPU is needed"
