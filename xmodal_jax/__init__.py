"""Cross-modal pretraining and retrieval in JAX: pictures, video, sound and text in many languages."""

__version__ = "0.1.0"
