"""Chooses the attention of a run (`model.attention`): plain XLA, or kernels of the platform.

A platform has a kernel for whole rows, which scoring, training and prefill read from their start
(`whole_attention.py`), and a form of the KV cache, with a kernel for decoding
(`cached_attention.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax

from rapo_jax.config import ModelSettings
from rapo_jax.model.cached_attention import FORMS, CacheForm
from rapo_jax.model.whole_attention import kv_heads_split, on_shards, plain, splash

GPU = ("gpu", "cuda")


def _refuses(s: ModelSettings, *, multiple: int, most: int = 0, bfloat16: bool = True) -> str:
    """Why a kernel, perhaps one of bfloat16 alone, cannot compute a model's attention."""
    if bfloat16 and s.dtype != "bfloat16":
        return f"it needs model.dtype='bfloat16', not {s.dtype!r}"
    if s.head_width % multiple or 0 < most < s.head_width:
        widths = f"a multiple of {multiple}" + (f" up to {most}" if most else "")
        return f"model.head_width={s.head_width}: it needs {widths}"
    return ""


class Kernel(NamedTuple):
    """A fused causal attention of one platform, for rows of any length; and one for decoding."""

    attend: Callable[..., jax.Array]
    """(query_BTNH, key_BTKH, value_BTKH) -> mixed_BTNH."""
    platforms: tuple[str, ...]
    refuses: Callable[[ModelSettings], str]
    """Why the kernel cannot compute this model's attention; '' if it can."""
    form: str
    """The platform's form of the KV cache, a key of FORMS."""
    form_refuses: Callable[[ModelSettings], str]


_cudnn = partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
_of_cudnn = partial(_refuses, multiple=8, most=128)
_of_splash = partial(_refuses, multiple=64, bfloat16=False)
_of_paged = partial(_refuses, multiple=128)  # it rounds keys and values to bfloat16
KERNELS: Mapping[str, Kernel] = {
    "cudnn": Kernel(_cudnn, GPU, _of_cudnn, "cudnn", _of_cudnn),
    "splash": Kernel(splash, ("tpu",), _of_splash, "paged", _of_paged),
}


class Choice(NamedTuple):
    """The attention that a run uses."""

    name: str
    """Of whole rows: 'plain', or a key of KERNELS."""
    form: str
    """Of decoding: a key of FORMS."""
    note: str
    """For the start-up log: why a kernel of the platform is not used; '' if all are."""


def choose(settings: ModelSettings, *, platform: str) -> Choice:
    """Resolves `model.attention` for devices of `platform` (cpu, gpu, tpu).

    Raises:
        ValueError: it names a kernel that this platform or this model cannot have.
    """
    wanted = name = settings.attention
    if wanted == "auto":
        name = next((name for name, k in KERNELS.items() if platform in k.platforms), "plain")
    fallback = "plain" if platform in GPU else "blocks"
    if name == "plain":
        return Choice(name, fallback, "")
    kernel = KERNELS[name]
    if platform not in kernel.platforms:
        raise ValueError(
            f"model.attention={name!r}: it runs on {kernel.platforms[0]}, and the devices are "
            f"{platform}; set it to 'auto'"
        )
    reason, form_reason = kernel.refuses(settings), kernel.form_refuses(settings)
    if reason and wanted != "auto":
        raise ValueError(f"model.attention={name!r}: {reason}; or set it to 'auto'")
    if reason:
        note = f"model.attention='auto': plain attention, because {name} cannot serve this model: "
        return Choice("plain", fallback, note + reason)
    if form_reason:
        note = f"model.attention={wanted!r}: {name} for whole rows, but plain attention in "
        note += f"decoding, because {kernel.form} attention cannot serve this model: {form_reason}"
        return Choice(name, fallback, note)
    return Choice(name, kernel.form, "")


def choice_of(settings: ModelSettings) -> Choice:
    """`choose` for a program: the platform is that of a named kernel, or else jax's default one.

    So to compile for another platform, name the kernel.
    """
    named = KERNELS.get(settings.attention)
    return choose(settings, platform=named.platforms[0] if named else jax.default_backend())


def kernel_of(settings: ModelSettings) -> Kernel | None:
    """The fused kernel for whole rows; None for plain attention."""
    return KERNELS.get(choice_of(settings).name)


def cache_form(settings: ModelSettings) -> CacheForm:
    return FORMS[choice_of(settings).form]


def attend_whole(
    settings: ModelSettings, query_BTNH: jax.Array, key_BTKH: jax.Array, value_BTKH: jax.Array
) -> jax.Array:
    """Causal attention of whole rows, as `model.attention` says."""
    kernel = kernel_of(settings)
    if kernel is None:
        return plain(query_BTNH, key_BTKH, value_BTKH)
    key_BTKH, value_BTKH = map(kv_heads_split, (key_BTKH, value_BTKH))
    return on_shards(kernel.attend, "BTNH,BTKH,BTKH->BTNH", query_BTNH, key_BTKH, value_BTKH)
