"""One update of the trained part of a model, compiled once for all learning rates."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from timemoe_jax.data.config import DataConfig
from timemoe_jax.models.base import ModelConfig, family_of
from timemoe_jax.runtime import partitioning
from timemoe_jax.training.config import LossConfig, OptimizerConfig, RunConfig, TrainConfig
from timemoe_jax.training.finetuning.config import FinetuneConfig
from timemoe_jax.training.finetuning.start import loss_of
from timemoe_jax.training.finetuning.trainable import Parts, assemble, rules_of
from timemoe_jax.training.objective import Batch, LossParts, Metrics, make_loss
from timemoe_jax.training.optimizer import make_optimizer
from timemoe_jax.training.step import TrainState, batch_arrays, guarded_update

_CLIP = 10.0  # deviations of the context, beyond which a target is cut
_STEPS_PER_POSITION = 64  # of a long head that is read now and then


def run_config(
    model: ModelConfig,
    config: FinetuneConfig,
    *,
    context: int,
    variates: int,
    algorithm: OptimizerConfig,
    source: str,
    parts: int = 1,
) -> RunConfig:
    """Fine-tuning as a run: what the pipeline, the objective and the loop read.

    The learning rate of its optimizer is 1: each update is multiplied by its own. The parts are
    those into which the mesh splits a batch.
    """
    by_context = config.normalize == "instance"
    wanted = max(context // 2, config.horizon, family_of(model).least_context(model))
    least = max(2, min(context, wanted))
    every = config.validation_every
    return RunConfig(
        model=model,
        data=DataConfig(
            path="series",
            length=context,
            future=config.horizon,
            standardization="context" if by_context else "series",
            context_min=least if by_context else 2,
            clip=_CLIP if by_context else 0.0,
            variates=variates,
        ),
        loss=LossConfig(
            kind=loss_of(model, config),
            huber_delta=config.huber_delta,
            horizon=config.horizon,
            max_steps_per_position=0 if model.quantile_levels else _STEPS_PER_POSITION,
        ),
        optimizer=OptimizerConfig(
            algorithm=algorithm.algorithm,
            matrix_rate_factor=algorithm.matrix_rate_factor,
            b1=algorithm.b1,
            b2=algorithm.b2,
            learning_rate=1.0,
            schedule="stable",
            weight_decay=config.weight_decay,
        ),
        train=TrainConfig(
            num_steps=config.num_steps,
            batch_size=config.batch_of(context * max(variates, 1), parts),
            gradient_accumulation=config.gradient_accumulation,
            log_every=every,
            checkpoint_every=every,
            keep_checkpoints=1,
            eval_every=every,
            max_nonfinite_in_row=config.max_nonfinite_in_row,
            init_from=source,
        ),
        seed=config.seed,
    )


def rate_at(step: int, num_steps: int, largest: float, warmup_share: float) -> float:
    """The learning rate of an update: a linear rise to the largest, then a cosine down to 0."""
    warmup = int(warmup_share * num_steps)
    if step < warmup:
        return largest * (step + 1) / (warmup + 1)
    return largest * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(num_steps - warmup, 1)))


class Update(NamedTuple):
    """The compiled update, and what it is applied to."""

    program: jax.stages.Compiled
    frozen: nnx.State
    trained: nnx.State  # at the start; copied, since an update takes its buffers
    optimizer: optax.GradientTransformation
    shardings: TrainState

    def initial(self) -> TrainState:
        """A state before the first update."""

        def create(trained: nnx.State) -> TrainState:
            copied = jax.tree.map(jnp.copy, trained)
            zero = jnp.zeros((), jnp.int32)
            return TrainState(zero, copied, self.optimizer.init(copied), zero + 0)

        return jax.jit(create, out_shardings=self.shardings)(self.trained)

    def __call__(self, state: TrainState, batch: Any, rate: float) -> tuple[TrainState, Metrics]:
        """One update at a learning rate; it takes the state's buffers."""
        where = self.shardings.step
        return self.program(state, self.frozen, batch, jax.device_put(np.float32(rate), where))


def compile_update(
    run: RunConfig, config: FinetuneConfig, parts: Parts, mesh: jax.sharding.Mesh
) -> Update:
    """Compiles the update for a mesh; the parameters are put where it reads them."""
    family = family_of(run.model)
    rules, optimizer, loss = rules_of(family), make_optimizer(run), make_loss(run)
    frozen_places = partitioning.shardings(parts.frozen, mesh, rules)
    frozen = jax.device_put(parts.frozen, frozen_places)

    def step(
        state: TrainState, frozen: nnx.State, batch: Batch, rate: Float[Array, ""]
    ) -> tuple[TrainState, Metrics]:
        dropped = jax.random.fold_in(jax.random.key(config.seed + 1), state.step)

        def of_trained(trained: nnx.State, *rest: Any) -> tuple[Array, LossParts]:
            return loss(assemble(trained, frozen, config, dropped), *rest)

        return guarded_update(run, optimizer, of_trained, state, batch, rate, factor=rate)

    def initial(trained: nnx.State) -> TrainState:
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, trained, optimizer.init(trained), zero)

    abstract = jax.eval_shape(initial, parts.trained)
    places = partitioning.shardings(abstract, mesh, rules)
    whole = NamedSharding(mesh, P())
    data = run.data
    shape = (run.train.batch_size, *((data.variates,) if data.variates else ()))
    batch = {
        name: jax.ShapeDtypeStruct(
            (*shape, data.length + data.future), dtype, sharding=partitioning.batch_sharding(mesh)
        )
        for name, dtype in batch_arrays(run).items()
    }
    with partitioning.use_mesh(mesh):
        program = (
            jax.jit(step, donate_argnums=0, out_shardings=(places, whole))
            .lower(
                _with(abstract, places),
                _with(jax.eval_shape(lambda p: p, parts.frozen), frozen_places),
                batch,
                jax.ShapeDtypeStruct((), jnp.float32, sharding=whole),
            )
            .compile()
        )
    trained = jax.device_put(parts.trained, places.params)
    return Update(program, frozen, trained, optimizer, places)


def _with(shapes: Any, places: Any) -> Any:
    return jax.tree.map(
        lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), shapes, places
    )
