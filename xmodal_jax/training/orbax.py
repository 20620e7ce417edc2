"""Orbax, as `ocp`, imported so that a program's root logger stays as it was."""

from xmodal_jax.terminal import handlers_kept

with handlers_kept():
    import orbax.checkpoint as ocp

__all__ = ["ocp"]
