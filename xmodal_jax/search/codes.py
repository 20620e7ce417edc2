"""Hash codes: signs of K bits packed into K/8 bytes, and those bytes as words a device can count."""

import numpy as np

from xmodal_jax.errors import UserError

MOST_BITS = 1 << 15  # distances are kept as 16 bits


def refuse_bad_bits(bits: int) -> None:
    """Raise `UserError` unless `bits` is a positive multiple of 8, at most `MOST_BITS`."""
    if bits > MOST_BITS:
        raise UserError(f"A hash code of {bits} bits is too long to search; write at most {MOST_BITS}.")
    if bits <= 0 or bits % 8 != 0:
        raise UserError(
            f"A hash code of {bits} bits does not fill whole bytes; write a multiple of 8, such as {max(8, bits & ~7)}."
        )


def pack(signs: np.ndarray) -> np.ndarray:
    """Pack hash values into bytes, first bit highest.

    Args:
      signs: [n,K] of any real type; values above zero are +1, all others -1.

    Returns:
      uint8 [n,K/8].

    Raises:
      UserError: K is not a multiple of 8, or a value is not a number.
    """
    signs = np.asarray(signs)
    if signs.ndim != 2:
        raise UserError(f"Hash values have {signs.ndim} axes; write one row per record, [n, K].")
    refuse_bad_bits(signs.shape[1])
    if np.isnan(signs).any():
        raise UserError("Hash values contain NaN; the model that made them has diverged.")
    return np.packbits(signs > 0, axis=1)


def unpack(codes: np.ndarray) -> np.ndarray:
    """Invert `pack`: uint8 [n,K/8] -> int8 [n,K] of -1 and +1."""
    return np.unpackbits(codes, axis=1).astype(np.int8) * np.int8(2) - np.int8(1)


def words(codes: np.ndarray, size: int = 4) -> np.ndarray:
    """View packed codes uint8 [n,K/8] as unsigned words [n,W] of `size` bytes, filled with zero bytes.

    Raises UserError for more than `MOST_BITS` bits.
    """
    refuse_bad_bits(8 * codes.shape[1])
    missing = -codes.shape[1] % size
    padded = np.pad(codes, ((0, 0), (0, missing))) if missing else codes  # a memory map that fits is not copied
    return np.ascontiguousarray(padded).view(np.dtype(f"u{size}"))
