"""Whether a model keeps rows apart that stand one after another in one sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from factory.errors import RunError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBE = (5, 3)  # tokens of the rows that are tried
TOLERANCE = 1e-4  # of the greatest logit; a leaking boundary is a hundred times that, or more


def check_packing(model: PreTrainedModel) -> None:
    """Try two rows in one sequence and each alone: positions and attention must begin anew.

    What a model makes of restarting positions is its own affair (some take none, some number
    their tokens themselves), so it is asked rather than known.

    Raises:
        RunError: the model's logits are others then.
    """
    if model.config.is_encoder_decoder:
        raise RunError("student.packing", True, "packs a decoder's rows: leave it out for this one")
    if not _keeps_apart(model):
        remedy = f"{model.config.model_type} does not keep packed rows apart: leave it out"
        raise RunError("student.packing", True, remedy)


def _keeps_apart(model: PreTrainedModel) -> bool:
    trained = model.training
    model.eval()
    rows = [torch.arange(length) % model.config.get_text_config().vocab_size for length in PROBE]
    places = torch.cat([torch.arange(length) for length in PROBE])
    with torch.inference_mode():
        alone = torch.cat([model(input_ids=row[None]).logits[0] for row in rows])
        try:
            packed = model(
                input_ids=torch.cat(rows)[None], position_ids=places[None], use_cache=False
            )
        except TypeError:  # it takes no positions
            return False
        finally:
            model.train(trained)
    return bool((packed.logits[0] - alone).abs().max() <= TOLERANCE * alone.abs().max())
