"""Two sets of features, and what FID, KID, precision and recall, and CMMD share."""

from torch import Tensor

from ...errors import UserError
from ...recipe.schema import REQUIRED, Block, Name, setting
from . import Seen


class DistributionSettings(Block):
    network: Name = setting("inception", "what sees the pictures: a row of weights.yaml, or MODULE:CLASS")
    reference: Name = setting(REQUIRED, "folder of real pictures, below --weights or as it stands, whole (val2014)")
    sha256: Name | None = setting(None, "what the SHA-256 of the network's file begins with, instead of what is known")


def both(seen: Seen, settings: DistributionSettings, least: int = 2) -> tuple[Tensor, Tensor]:
    """Features of the drawn and of the reference pictures, fp64. Raises UserError where one has fewer than `least`."""
    reference = seen.reference(settings.reference)
    for pictures in (seen.pictures, reference):
        if len(pictures) < least:
            raise UserError(f"{pictures.folder} holds {len(pictures)} pictures; this score needs at least {least}.")
    found = tuple(
        seen.features.of(pictures, settings.network, settings.sha256) for pictures in (seen.pictures, reference)
    )
    seen.used[settings.network] = seen.features.network(settings.network, settings.sha256).described
    seen.used[settings.reference] = {"pictures": len(reference), "sha256": reference.digest}
    drawn, real = (features.double() for features in found)
    return drawn, real
