"""The old name of `xmodal_jax.atomic`, for the modules that still import it."""

from xmodal_jax.atomic import write_file as write_whole  # noqa: F401
