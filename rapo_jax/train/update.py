"""One update: gradients summed over micro-batches, then one step of the optimizer.

Sums and weights are carried over micro-batches and divided once, so that the result does not depend
on how rows were split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from rapo_jax.config import ModelSettings, RlSettings
from rapo_jax.method.objective import (
    kl_penalty_sums,
    luffy_loss_sums,
    policy_loss_sums,
    replay_loss_sums,
)
from rapo_jax.method.sums import add_metric_sums, metric_means
from rapo_jax.method.tape import policy_mask
from rapo_jax.model.lora import trained, with_trained
from rapo_jax.model.scoring import log_probs
from rapo_jax.model.sharding import on_mesh, place, row_shards, rows
from rapo_jax.train.micro_batches import micro_batches
from rapo_jax.types import Array, Batch, Params, TrainState


class Sums(flax.struct.PyTreeNode):
    """Sums over micro-batches: loss, its gradient by the trained parameters, weight, metrics."""

    gradient: Params
    loss: Array
    weight: Array
    metrics: dict[str, Array]


LossSums = Callable[..., tuple[jax.Array, tuple[jax.Array, dict[str, jax.Array]]]]
"""(params, batch, row_mask_B, reference params or None) -> (loss sum, (weight, metric sums))."""


def rapo_loss(model: ModelSettings, rl: RlSettings) -> LossSums:
    """Eq. 11 on a micro-batch: shaped, clipped policy loss, and the KL penalty where beta > 0."""

    def loss(params: Params, batch: Batch, row_mask_B: jax.Array, reference: Params | None):
        mask_BT = policy_mask(batch.source_BT, row_mask_B)
        logp_BT = log_probs(model, params, batch.token_BT, mask_BT)
        loss_sum, weight, metrics = policy_loss_sums(
            logp_BT,
            batch.old_logp_BT,
            mask_BT,
            batch.advantage,
            batch.retrieved_share_B,
            row_mask_B,
            m=rl.m,
            clip_low=rl.clip_low,
            clip_high=rl.clip_high,
            aggregation=rl.aggregation,
            clipping=rl.clipping,
            dual_clip=rl.dual_clip or None,
        )
        if reference is not None:
            reference_BT = log_probs(model, reference, batch.token_BT, mask_BT)
            reference_BT = jax.lax.stop_gradient(reference_BT)
            kl_sum, _ = kl_penalty_sums(
                logp_BT, reference_BT, mask_BT, row_mask_B, aggregation=rl.aggregation
            )
            loss_sum = loss_sum + rl.kl * kl_sum
            metrics = metrics | {"kl": jax.lax.stop_gradient(kl_sum)}
        return loss_sum, (weight, metrics)

    return loss


def luffy_loss(model: ModelSettings, rl: RlSettings) -> LossSums:
    """LUFFY's loss on a micro-batch.

    The authors divide by a fixed length of responses; here `rl.aggregation` decides, for an agent's
    tapes are far from their longest.
    """

    def loss(params: Params, batch: Batch, row_mask_B: jax.Array, reference: Params | None):
        mask_BT = policy_mask(batch.source_BT, row_mask_B)
        logp_BT = log_probs(model, params, batch.token_BT, mask_BT)
        off_BT = mask_BT & (batch.off_policy_B > 0)[:, None]
        loss_sum, weight, metrics = luffy_loss_sums(
            logp_BT,
            batch.old_logp_BT,
            mask_BT & ~off_BT,
            off_BT,
            batch.advantage,
            row_mask_B,
            gamma=rl.luffy_gamma,
            aggregation=rl.aggregation,
        )
        return loss_sum, (weight, metrics)

    return loss


def replay_loss(model: ModelSettings, rl: RlSettings) -> LossSums:
    """RolloutReplay's loss on a micro-batch."""

    def loss(params: Params, batch: Batch, row_mask_B: jax.Array, reference: Params | None):
        mask_BT = policy_mask(batch.source_BT, row_mask_B)
        loss_sum, weight, metrics = replay_loss_sums(
            log_probs(model, params, batch.token_BT, mask_BT),
            batch.old_logp_BT,
            batch.behaviour_logp_BT,
            mask_BT,
            batch.advantage,
            row_mask_B,
            clip=rl.clip_low,
            aggregation=rl.aggregation,
        )
        return loss_sum, (weight, metrics)

    return loss


class Updater:
    """The compiled update of one loss, for training states laid out as `state` is.

    Gradients are laid out like the parameters they belong to; optimizer moments stay as they were.
    `add` and `apply` are the two programs: one more micro-batch, and the optimizer's step.
    """

    def __init__(
        self,
        loss: LossSums,
        optimizer: optax.GradientTransformation,
        state: TrainState,
        *,
        mesh: Mesh,
        rl: RlSettings,
    ) -> None:
        """`rl` has the sizes of micro-batches."""
        self._mesh, self._rl = mesh, rl
        self._make_zeros: Callable[[], Sums] | None = None

        def sums_of(params: Params, batch: Batch, row_mask_B: jax.Array, reference: Params | None):
            def loss_of(part: Params):
                return loss(with_trained(params, part), batch, row_mask_B, reference)

            with on_mesh(mesh):
                value, gradient = jax.value_and_grad(loss_of, has_aux=True)(trained(params))
            loss_sum, (weight, metrics) = value
            return Sums(gradient, loss_sum, weight, metrics)

        self.sums_of = sums_of
        where = jax.tree.map(lambda x: x.sharding, _trained_state(state))
        everywhere = state.step.sharding
        self.sums_layout = Sums(where.params, everywhere, everywhere, everywhere)
        self.add = jax.jit(
            lambda sums, *arguments: join(sums, sums_of(*arguments)),
            donate_argnums=0,
            out_shardings=self.sums_layout,
        )
        self.apply = jax.jit(
            partial(_apply, optimizer), donate_argnums=0, out_shardings=(where, everywhere)
        )

    def _zeros(self, *arguments: object) -> Sums:
        """Sums of nothing, made on the devices: for 7 billion parameters they are 30 GB.

        Their shapes are those of `sums_of(*arguments)`, the same for micro-batches of any size.
        """
        if self._make_zeros is None:
            shapes = jax.eval_shape(self.sums_of, *arguments)
            self._make_zeros = jax.jit(
                lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes),
                out_shardings=self.sums_layout,
            )
        return self._make_zeros()

    def update(
        self,
        state: TrainState,
        batch: Batch,
        length_B: np.ndarray,
        reference: Params | None,
        *,
        zero_advantage_weight: float = 0.0,
    ) -> tuple[TrainState, dict[str, Array]]:
        """One optimizer step on all rows of `batch`, numpy arrays of `length_B` valid tokens.

        Waits for nothing: the metrics are scalars on the devices, which `fetched` waits for.

        Where the loss or the norm of its gradient is not finite, parameters and moments stay as
        they were, the step counts all the same, and the metric `skipped` is 1.
        `zero_advantage_weight` is the weight of rows left out for their advantage of 0.
        """
        sums: Sums | None = None
        positions = 0
        sizes = (self._rl.buckets, self._rl.micro_tokens, row_shards(self._mesh))
        for micro, row_mask_B, _ in micro_batches(batch, length_B, *sizes):
            micro, row_mask_B = place((micro, row_mask_B), rows(self._mesh))
            arguments = (state.params, micro, row_mask_B, reference)
            if sums is None:  # zeros laid out like all sums: one program serves every addition
                sums = self._zeros(*arguments)
            sums = self.add(sums, *arguments)
            positions += micro.token_BT.size
        params = state.params
        state, metrics = self.apply(_trained_state(state), sums, np.float32(zero_advantage_weight))
        state = state.replace(params=with_trained(params, state.params))
        return state, metrics | {"padding": 1.0 - int(length_B.sum()) / max(positions, 1)}


def fetched(metrics: Mapping[str, Array]) -> dict[str, float]:
    """Metrics of an update as numbers; waits until it is done."""
    return {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}


def _apply(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    sums: Sums,
    zero_advantage_weight: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
    weight = jnp.maximum(sums.weight + zero_advantage_weight, 1.0)
    gradient = jax.tree.map(lambda g: g / weight, sums.gradient)
    changes, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, changes)
    loss, norm = sums.loss / weight, optax.tree.norm(gradient)
    # A finite norm, in float32 a finite sum of squares, makes Adam's moments finite too. A look at
    # the new state itself would hold it beside the old one.
    sound = jnp.isfinite(loss) & jnp.isfinite(norm)

    def guarded(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(sound, new, old)

    params = jax.tree.map(guarded, params, state.params)
    opt_state = jax.tree.map(guarded, opt_state, state.opt_state)
    metrics = metric_means(sums.metrics) | {"loss": loss, "grad_norm": norm, "skipped": ~sound}
    if "kl" in sums.metrics:  # a sum of the loss's aggregation: its divisor is the loss's
        metrics["kl"] = sums.metrics["kl"] / weight
    return TrainState(params, opt_state, state.step + 1), metrics


def _trained_state(state: TrainState) -> TrainState:
    """The state without a frozen base, which the optimizer neither reads nor changes."""
    return state.replace(params=trained(state.params))


def join(left: Sums, right: Sums) -> Sums:
    """Adds two micro-batches."""
    return Sums(
        jax.tree.map(jnp.add, left.gradient, right.gradient),
        left.loss + right.loss,
        left.weight + right.weight,
        add_metric_sums(left.metrics, right.metrics),
    )
