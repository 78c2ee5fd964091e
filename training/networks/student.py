"""The one-step student: a copy of the teacher whose weights all train, or a LoRA over a frozen copy."""

import copy

import peft
from torch import Tensor, nn

from ..errors import UserError, quoted
from ..recipe.config import Student
from .adapter import adapter_state, add_adapter, halve_frozen_weights, load_adapter
from .backbones import LatentDiffusion
from .backbones.sources import check_source
from .nasa import add_nasa
from .sharding import split_as


def student_origin(backbone: LatentDiffusion, settings: Student) -> nn.Module:
    """The network that the student starts from, its own copy. Raises UserError."""
    if not settings.start_from:
        return copy.deepcopy(backbone.network)
    check_source(settings.start_from)
    network = backbone.load_network(settings.start_from).to(backbone.device).eval()
    own, teachers = (
        {name: weight.shape for name, weight in either.named_parameters()} for either in (network, backbone.network)
    )
    if own != teachers:
        raise UserError(f"student.start_from: {quoted(settings.start_from)} has other layers than the teacher.")
    return network


def make_student(network: nn.Module, settings: Student, bf16: bool = False, nasa: bool = False) -> nn.Module:
    """The student before its first step, of its `student_origin`; trainable weights in fp32, a 1e-6 update would vanish
    in bf16.

    bf16: frozen weights (below a LoRA) in half the size. nasa: takes negative prompts. Raises UserError.
    """
    if nasa:
        add_nasa(network)
    if settings.lora is None:
        return network.requires_grad_(True)
    if bf16:
        halve_frozen_weights(network)
    return add_adapter(network, settings.lora)


def student_state(student: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint keeps: all weights, or the adapter's alone."""
    return adapter_state(student) if isinstance(student, peft.PeftModel) else student.state_dict()


def load_student(student: nn.Module, state: dict[str, Tensor]) -> None:
    """`state` as `student_state` gives it, whole, also where the student is split."""
    if isinstance(student, peft.PeftModel):
        load_adapter(student, state)
    else:
        own = student.state_dict()
        student.load_state_dict({key: split_as(value, own.get(key)) for key, value in state.items()})


def plain_student(
    backbone: LatentDiffusion, settings: Student, state: dict[str, Tensor], origin: nn.Module | None = None
) -> nn.Module:
    """A network without peft that holds the student of a checkpoint, a LoRA merged into the weights it started from.

    origin: the `student_origin`, where it is there already. Raises UserError where the checkpoint does not fit it.
    """
    student = make_student(student_origin(backbone, settings) if origin is None else origin, settings)
    try:
        load_student(student, state)
    except (RuntimeError, KeyError) as error:  # how PyTorch tells of tensors missing, left over or of another shape
        reason = quoted(str(error).splitlines()[-1].strip())
        raise UserError(
            f"The run's student does not fit its teacher {quoted(backbone.source)}, was that changed? ({reason})"
        ) from None
    if isinstance(student, peft.PeftModel):
        student = student.merge_and_unload()
    return student.requires_grad_(False).eval()
