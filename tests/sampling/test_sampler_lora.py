"""What samples with adapters: their own copy, beside the weights or added into them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.config import LoraSettings
from rapo_jax.environment import Environment
from rapo_jax.model.decoding import sampling_copy
from rapo_jax.model.lora import ADAPTERS, attach, init_adapters, merged
from rapo_jax.model.scoring import score
from rapo_jax.model.sharding import make_mesh
from rapo_jax.sampling.sampler import Sampler
from rapo_jax.types import Source

LORA = LoraSettings(rank=3, alpha=6.0, targets=("q", "v", "down"), merge=False)


@pytest.fixture(scope="module")
def adapted(house):
    """The house's model, its parameters with fresh adapters, and with ones that matter."""
    model = dataclasses.replace(house.model, lora=LORA)
    fresh = attach(model, house.params, init_adapters(model, jax.random.key(0)))
    rng = np.random.default_rng(0)
    shaken = jax.tree.map(lambda x: np.float32(0.1 * rng.standard_normal(x.shape)), fresh[ADAPTERS])
    return model, fresh, fresh | {ADAPTERS: shaken}


@pytest.fixture(scope="module")
def sampler_of(house):
    def make(model):
        r = dataclasses.replace(house.settings.rollout, driver="host")
        sizes = {"observation_tokens": r.observation_tokens, "retrieved_tokens": r.retrieved_tokens}
        return Sampler(
            model,
            r,
            house.tokens,
            Environment(house.tokens, house.tools, **sizes),
            make_mesh(jax.devices()[:1]),
            system=house.system,
            embed=lambda query_BE: query_BE,
            query_shape=jax.ShapeDtypeStruct((32,), np.float32),
        )

    return make


def tape_of(sampler, params, house):
    return sampler.sample(
        sampler.load(params),
        jax.random.key(0),
        house.asked[:2],
        group_size=2,
        n_hybrid=0,
        temperature=1.0,
    )


def test_fresh_adapters_sample_the_tapes_of_the_base(house, adapted, sampler_of):
    model, fresh, _ = adapted
    found = tape_of(sampler_of(model), fresh, house)
    wanted = tape_of(sampler_of(house.model), house.params, house)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("merge", [False, True])
def test_tapes_have_the_log_probs_of_the_adapted_policy(merge, house, adapted, sampler_of):
    model, _, shaken = adapted
    user_tools = dataclasses.replace(model, lora=dataclasses.replace(LORA, merge=merge))
    tape = tape_of(sampler_of(user_tools), shaken, house)
    policy_BT = tape.source_BT == Source.POLICY
    logp_BT, _ = jax.jit(lambda p, x: score(model, p, x))(shaken, tape.token_BT)
    np.testing.assert_allclose(tape.logp_BT[policy_BT], logp_BT[policy_BT], atol=1e-4)
    base_BT, _ = jax.jit(lambda p, x: score(house.model, p, x))(house.params, tape.token_BT)
    assert np.abs(tape.logp_BT - base_BT)[policy_BT].max() > 1e-2


def test_load_casts_adapters_or_adds_them_in(adapted, sampler_of):
    model, _, shaken = adapted
    narrow = dataclasses.replace(model, dtype="bfloat16")
    apart = sampler_of(narrow).load(shaken)
    (layer,) = apart["layers"]
    assert {str(x.dtype) for x in jax.tree.leaves(layer[ADAPTERS])} == {"bfloat16"}
    whole = dataclasses.replace(narrow, lora=dataclasses.replace(LORA, merge=True))
    together = sampler_of(whole).load(shaken)
    (added,) = together["layers"]
    assert set(added) == {"params"}
    wanted = sampling_copy(whole, merged(whole, shaken))
    jax.tree.map(np.testing.assert_array_equal, together, wanted)
    kernels = (each["params"]["query"]["kernel"] for each in (layer, added))
    base, kernel = map(np.asarray, kernels)
    assert kernel.dtype == jnp.bfloat16 and (kernel != base).any()
