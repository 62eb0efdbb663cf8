"""Prints the reference of all keys: python -m rapo_jax.config > docs/config.md"""

from rapo_jax.config.reference import reference

print(reference(), end="")
