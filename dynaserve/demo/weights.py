"""The demo model's weights: seeded, uniform, the same bytes on every machine."""

from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float32]

SEED: Final = 20250904

HIDDEN: Final = 256
INTERMEDIATE: Final = 512
LAYERS: Final = 4
HEADS: Final = 4
KV_HEADS: Final = 2
HEAD_DIM: Final = 64

# Standard deviation of the logits: sampling at temperature 1 has few likely choices.
LOGIT_STD: Final = 2.5
# What a layer adds, against what it reads. At 1 the last token outweighs the text so far and
# greedy answers fall into short cycles; more only makes float32 rounding show.
LAYER_GAIN: Final = 2.0


def uniform_source(seed: int) -> Callable[[tuple[int, ...], float], Weights]:
    """Draw arrays of mean 0 and a given standard deviation.

    The legacy generator's stream is frozen, and a uniform draw has no libm in it, so the
    weights do not depend on numpy's version or the processor.
    """
    random = np.random.RandomState(seed)

    def draw(shape: tuple[int, ...], std: float) -> Weights:
        values = (random.random_sample(shape) * 2 - 1) * (std * 3**0.5)
        return np.asarray(values, dtype=np.float32)

    return draw


def layer_weights(
    index: int, draw: Callable[[tuple[int, ...], float], Weights]
) -> dict[str, Weights]:
    """One decoder layer."""
    prefix = f"model.layers.{index}"
    narrow, wide = KV_HEADS * HEAD_DIM, HEADS * HEAD_DIM
    from_hidden = HIDDEN**-0.5
    return {
        f"{prefix}.self_attn.q_proj.weight": draw((wide, HIDDEN), from_hidden),
        f"{prefix}.self_attn.k_proj.weight": draw((narrow, HIDDEN), from_hidden),
        f"{prefix}.self_attn.v_proj.weight": draw((narrow, HIDDEN), from_hidden),
        f"{prefix}.self_attn.o_proj.weight": draw((HIDDEN, wide), LAYER_GAIN * wide**-0.5),
        f"{prefix}.mlp.gate_proj.weight": draw((INTERMEDIATE, HIDDEN), from_hidden),
        f"{prefix}.mlp.up_proj.weight": draw((INTERMEDIATE, HIDDEN), from_hidden),
        f"{prefix}.mlp.down_proj.weight": draw(
            (HIDDEN, INTERMEDIATE), LAYER_GAIN * INTERMEDIATE**-0.5
        ),
        f"{prefix}.input_layernorm.weight": np.ones(HIDDEN, np.float32),
        f"{prefix}.post_attention_layernorm.weight": np.ones(HIDDEN, np.float32),
    }


def make_weights(vocab_size: int, logit_gains: Iterable[tuple[int, float]]) -> dict[str, Weights]:
    """All weights by their Hugging Face names; ``logit_gains`` scale single tokens' logits."""
    draw = uniform_source(SEED)
    weights = {"model.embed_tokens.weight": draw((vocab_size, HIDDEN), 1.0)}
    for index in range(LAYERS):
        weights |= layer_weights(index, draw)
    weights["model.norm.weight"] = np.ones(HIDDEN, np.float32)
    head = draw((vocab_size, HIDDEN), LOGIT_STD * HIDDEN**-0.5)
    for token, gain in logit_gains:
        head[token] *= np.float32(gain)
    weights["lm_head.weight"] = head
    return weights
