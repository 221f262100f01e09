"""Forecasting with an encoder: a window slides over the forecast, a step at a time."""

from typing import Any

from jaxtyping import Array, Bool, Float, Int

from timemoe_jax.models.decoding import Decoded
from timemoe_jax.models.encoder.windows import aligned, filled_up, marks_from, slide


def decode(
    model: Any,
    x: Float[Array, "B *C T"],
    mask: Bool[Array, "B *C T"],
    horizon: int,
    *,
    grows: bool,
    marks: Float[Array, "B M S"] | None = None,
) -> Decoded:
    """Forecasts after contexts whose last points are observed.

    Each context is read from its first observed point on, `max_position_embeddings` points at most;
    missing points are interpolated, and a context that is shorter than `config.shortest` is
    preceded by its first value. A window that `grows` takes in what was forecast until it is of the
    longest length, else it keeps that of the context. Marks are those of the contexts' points, and
    of as many points after them as are read: whole steps, but for the last one.
    """
    config = model.config
    *lead, length = x.shape
    variates = 1 if marks is None else lead[-1]
    rows = x.reshape(-1, length)
    window = aligned(rows, mask.reshape(rows.shape), variates)
    count = -(-horizon // config.step)
    size = length + (config.step * (count - 1) if grows else 0)
    size = -(-max(size, config.shortest) // config.patch_size) * config.patch_size
    window = filled_up(window, config.shortest, min(size, config.max_position_embeddings))
    begins = (window.first + window.lengths % config.patch_size)[::variates]

    def forward(values: Array, lengths: Array, number: Int[Array, ""]) -> Array:
        read = None
        if marks is not None:
            read = marks_from(marks, begins + number * config.step, values.shape[1])
        return model.encode(values, lengths, read).outputs

    points = slide(
        forward,
        window,
        patch_size=config.patch_size,
        step=config.step,
        grows=grows,
        count=count,
    )
    return Decoded(points[:, :horizon].reshape(*lead, horizon), None)
