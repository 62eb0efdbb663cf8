"""One update: rows in micro-batches of few widths, gradients as sums, one step of the optimizer.

Sums and counts are carried over micro-batches and divided once, so the result does not depend on
how rows were split. Rows are sorted by length first: a micro-batch is as wide as its longest row,
rounded up to a bucket, and each bucket is one compiled program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from rapo_jax.config import ModelSettings, RlSettings
from rapo_jax.method.objective import (
    add_metric_sums,
    kl_penalty_sums,
    metric_means,
    policy_loss_sums,
    row_weight,
)
from rapo_jax.model.lora import trained, with_trained
from rapo_jax.model.scoring import score
from rapo_jax.model.sharding import on_mesh, put
from rapo_jax.types import Array, Batch, Params, Source, TrainState


class Sums(flax.struct.PyTreeNode):
    """What micro-batches add up to: gradient of the summed loss, its weight, summed metrics.

    The gradient is that of the trained part of the parameters: of adapters alone, if there are.
    """

    gradient: Params
    loss: Array
    weight: Array
    metrics: dict[str, Array]


LossSums = Callable[..., tuple[jax.Array, tuple[jax.Array, dict[str, jax.Array]]]]
"""(params, batch, row_mask_B, reference params or None) -> (loss sum, (weight, metric sums))."""


def rapo_loss(model: ModelSettings, rl: RlSettings) -> LossSums:
    """Eq. 11 on a micro-batch: shaped, clipped policy loss, and the KL penalty where beta > 0."""

    def loss(params: Params, batch: Batch, row_mask_B: jax.Array, reference: Params | None):
        logp_BT, _ = score(model, params, batch.token_BT)
        mask_BT = batch.source_BT == Source.POLICY
        loss_sum, weight, metrics = policy_loss_sums(
            logp_BT,
            batch.old_logp_BT,
            mask_BT,
            batch.advantage_B,
            batch.retrieved_share_B,
            row_mask_B,
            m=rl.m,
            clip_low=rl.clip_low,
            clip_high=rl.clip_high,
            aggregation=rl.aggregation,
        )
        if reference is not None:
            reference_BT, _ = score(model, reference, batch.token_BT)
            kl_sum, _ = kl_penalty_sums(
                logp_BT,
                jax.lax.stop_gradient(reference_BT),
                mask_BT,
                row_mask_B,
                aggregation=rl.aggregation,
            )
            loss_sum = loss_sum + rl.kl * kl_sum
            metrics = metrics | {"kl": jax.lax.stop_gradient(kl_sum)}
        return loss_sum, (weight, metrics)

    return loss


def imitation_loss(model: ModelSettings) -> LossSums:
    """Mean negative log-likelihood of POLICY tokens: the cold start, and the SFT baseline."""

    def loss(params: Params, batch: Batch, row_mask_B: jax.Array, reference: Params | None):
        logp_BT, _ = score(model, params, batch.token_BT)
        mask_BT = (batch.source_BT == Source.POLICY) & (row_mask_B[:, None] > 0)
        tokens = mask_BT.sum().astype(jnp.float32)
        nll = -jnp.where(mask_BT, logp_BT, 0.0).sum()
        return nll, (tokens, {"tokens": tokens, "nll": jax.lax.stop_gradient(nll)})

    return loss


_row_weight = jax.jit(row_weight, static_argnames="aggregation")


def without_zero_advantage_rows(
    batch: Batch, length_B: np.ndarray, *, aggregation: str
) -> tuple[Batch, np.ndarray, float]:
    """Drops the rows whose advantage is 0: (batch, length_B, the weight of those dropped).

    A group whose rewards are all equal has no gradient (Eqs. 9-11 without KL), so scoring it is
    work for nothing: its rows count in the denominator, and that is known beforehand. One row is
    always kept, so that every update has metrics.
    """
    busy_B = np.asarray(batch.advantage_B) != 0
    if not busy_B.any():
        busy_B[np.argmin(length_B)] = True
    policy_BT = np.asarray(batch.source_BT) == Source.POLICY
    weight = float(_row_weight(policy_BT, ~busy_B, aggregation=aggregation))
    return jax.tree.map(lambda x: np.asarray(x)[busy_B], batch), length_B[busy_B], weight


class Updater:
    """Compiled update programs of one loss: `update(state, batch) -> (state, metrics)`."""

    def __init__(
        self,
        loss: LossSums,
        optimizer: optax.GradientTransformation,
        *,
        buckets: Sequence[int],
        micro_tokens: int,
        row_multiple: int,
        place_rows: Callable[[Any], Any],
    ) -> None:
        self._buckets, self._micro_tokens = tuple(buckets), micro_tokens
        self._row_multiple, self._place_rows = row_multiple, place_rows

        def sums_of(params: Params, batch: Batch, row_mask_B, reference) -> Sums:
            def loss_of(part: Params):
                return loss(with_trained(params, part), batch, row_mask_B, reference)

            with on_mesh(self._mesh):
                (loss_sum, (weight, metrics)), gradient = jax.value_and_grad(loss_of, has_aux=True)(
                    trained(params)
                )
            return Sums(gradient, loss_sum, weight, metrics)

        def add(sums: Sums, *micro_batch: Any) -> Sums:
            return join(sums, sums_of(*micro_batch))

        def apply(
            state: TrainState, sums: Sums, zero_advantage_weight: jax.Array
        ) -> tuple[TrainState, dict[str, jax.Array]]:
            weight = jnp.maximum(sums.weight + zero_advantage_weight, 1.0)
            gradient = jax.tree.map(lambda g: g / weight, sums.gradient)
            changes, opt_state = optimizer.update(gradient, state.opt_state, state.params)
            params = optax.apply_updates(state.params, changes)
            metrics = metric_means(sums.metrics)
            metrics |= {"loss": sums.loss / weight, "grad_norm": optax.tree.norm(gradient)}
            return TrainState(params, opt_state, state.step + 1), metrics

        self._mesh: Mesh | None = None
        self._sums_of, self._functions = sums_of, (add, apply)
        self._programs: tuple[Callable[..., Any], Callable[..., Any]] | None = None

    def update(
        self,
        state: TrainState,
        batch: Batch,
        length_B: np.ndarray,
        reference: Params | None,
        *,
        zero_advantage_weight: float = 0.0,
    ) -> tuple[TrainState, dict[str, float]]:
        """One optimizer step on all rows of `batch`, numpy arrays of `length_B` valid tokens.

        `zero_advantage_weight` is the weight of rows that `without_zero_advantage_rows` left out.
        """
        if self._programs is None:
            self._programs = self._compile(state)
        add, apply = self._programs
        sums: Sums | None = None
        slots = 0
        for micro, row_mask_B in self._micro_batches(batch, length_B):
            micro, row_mask_B = self._place_rows((micro, row_mask_B))
            arguments = (state.params, micro, row_mask_B, reference)
            if sums is None:
                sums = self._zero(arguments)
            sums = add(sums, *arguments)
            slots += micro.token_BT.size
        valid = int(length_B.sum())
        params = state.params
        state, metrics = apply(_trained_state(state), sums, np.float32(zero_advantage_weight))
        state = state.replace(params=with_trained(params, state.params))
        found = {name: float(value) for name, value in jax.device_get(metrics).items()}
        return state, found | {"padding": 1.0 - valid / max(slots, 1)}

    def _compile(self, state: TrainState) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Results stay where `state` lives: gradients like parameters, moments as they were."""
        add, apply = self._functions
        where = jax.tree.map(lambda x: x.sharding, _trained_state(state))
        everywhere = state.step.sharding
        self._mesh = getattr(everywhere, "mesh", None)
        self._sums_layout = Sums(where.params, everywhere, everywhere, everywhere)
        return (
            jax.jit(add, donate_argnums=0, out_shardings=self._sums_layout),
            jax.jit(apply, donate_argnums=0, out_shardings=(where, everywhere)),
        )

    def _zero(self, arguments: tuple) -> Sums:
        """Sums of nothing, laid out like all sums; one program serves every addition."""
        shapes = jax.eval_shape(self._sums_of, *arguments)
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        return put(zeros, self._sums_layout)

    def _micro_batches(
        self, batch: Batch, length_B: np.ndarray
    ) -> Iterator[tuple[Batch, np.ndarray]]:
        """Rows from the longest to the shortest, as many at a time as fit `micro_tokens`."""
        order = np.argsort(-length_B, kind="stable")
        while len(order):
            width = next(w for w in self._buckets if w >= length_B[order[0]])
            rows = max(self._micro_tokens // width, self._row_multiple)
            rows -= rows % self._row_multiple
            taken, order = order[:rows], order[rows:]
            row_mask_B = (np.arange(rows) < len(taken)).astype(np.float32)
            index = np.concatenate([taken, np.zeros(rows - len(taken), taken.dtype)])

            def pick(x: np.ndarray, index=index, width=width) -> np.ndarray:
                x = np.asarray(x)[index]
                return x[:, :width] if x.ndim == 2 else x

            yield jax.tree.map(pick, batch), row_mask_B


def _trained_state(state: TrainState) -> TrainState:
    """Without a frozen base, which a step of the optimizer neither reads nor changes."""
    return state.replace(params=trained(state.params))


def join(left: Sums, right: Sums) -> Sums:
    """Adds two micro-batches."""
    return Sums(
        jax.tree.map(jnp.add, left.gradient, right.gradient),
        left.loss + right.loss,
        left.weight + right.weight,
        add_metric_sums(left.metrics, right.metrics),
    )
