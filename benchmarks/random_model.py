"""Makes a model of random weights in a published shape, to measure the package's entry point.

    python benchmarks/random_model.py --model=1.5b --folder=runs/random-1.5b

Writes a Hugging Face folder (bfloat16) with a byte-level tokenizer in FOLDER/tokenizer, and prints
the command that trains it for a few steps of RAPO.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpu_sizes import PUBLISHED_NAMES, settings_of
from rapo_jax.config import ModelSettings
from rapo_jax.model.hf import save_weights
from rapo_jax.model.hf_config import config_of
from rapo_jax.model.sharding import compute_copy, layout, make_mesh, name_of
from rapo_jax.run.policy import policy_shapes
from rapo_jax.text.tokens import build_tokenizer
from rapo_jax.types import Params

DRAWN = ("kernel", "embed_VD", "head_DV", "a")
CORPUS = ("who is it? the answer is no word of a word. ",)


def random_params(model: ModelSettings, mesh: Mesh, *, sampling: bool = False) -> Params:
    """N(0, `model.init_scale`) in the training layout; norms are 1, biases and `b` factors 0.

    With `sampling`, in the dtypes of the sampling weights. Each array is drawn in its final
    dtype, so that at most one of them is in memory twice.
    """
    shapes = policy_shapes(model)
    where = layout(mesh, model, shapes, name="training")
    if sampling:
        shapes = jax.eval_shape(partial(compute_copy, model), shapes)

    def draw(path, shape: jax.ShapeDtypeStruct, at) -> jax.Array:
        name = name_of(path)
        end = name.split("/")[-1]

        def make(key: jax.Array) -> jax.Array:
            if end not in DRAWN:
                fill = 1.0 if end == "scale" else 0.0
                return jnp.full(shape.shape, fill, shape.dtype)
            normal = jax.random.normal(key, shape.shape, shape.dtype)
            return normal * jnp.asarray(model.init_scale, shape.dtype)

        number = sum(map(ord, name))
        return jax.jit(make, out_shardings=at)(jax.random.key(number))

    return jax.tree_util.tree_map_with_path(draw, shapes, where)


def write_folder(
    folder: Path, model: ModelSettings, params: Params, *, dtype: str = "bfloat16"
) -> None:
    """A Hugging Face folder of `params`, and a tokenizer of bytes in FOLDER/tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder, model, params, dtype=dtype, limit=round(5e9))
    config = config_of(model, max_positions=32_768) | {"torch_dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    build_tokenizer(folder / "tokenizer", CORPUS, vocab_size=1024)


def command(folder: Path) -> str:
    """A few steps of RAPO on the built-in task, which needs no download."""
    flags = {
        "stages": "\"('buffer','rl')\"",
        "model.folder": folder,
        "tokenizer.folder": folder / "tokenizer",
        "model.dtype": "bfloat16",
        "model.remat": "full",
        "buffer.questions": 50,
        "buffer.samples": 2,
        "buffer.keep": 2,
        "rollout.questions": 4,
        "rollout.max_calls": 4,
        "rollout.step_tokens": 256,
        "rollout.max_tokens": 4096,
        "rl.steps": 3,
        "evaluate.rows": 8,
    }
    return (
        f"python -m rapo_jax.main --config=configs/default.py --workdir={folder}-run "
        + " ".join(f"--config.{key}={value}" for key, value in flags.items())
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="1.5b", choices=(*PUBLISHED_NAMES, "tiny"))
    parser.add_argument("--folder", required=True, type=Path)
    given = parser.parse_args()
    if given.folder.exists():
        raise SystemExit(f"--folder={given.folder}: name a folder that does not exist yet")
    _, model = settings_of(given.model, adapters=0)
    model = dataclasses.replace(model, dtype="bfloat16")
    mesh = make_mesh(jax.devices()[:1])
    write_folder(given.folder, model, random_params(model, mesh, sampling=True))
    print(command(given.folder))


if __name__ == "__main__":
    main()
