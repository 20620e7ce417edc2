"""Pictures of the train split that are in another split too, as copies: an evaluation of them measures memory."""

from collections.abc import Iterable

TRAIN = "train"


class Copies:
    """Counts, while records stream by, those of other splits that share a picture with the train split."""

    def __init__(self) -> None:
        self._train: set[bytes] = set()
        self._others: dict[str, list[tuple[bytes, ...]]] = {}

    def add(self, split: str, pictures: Iterable[bytes]) -> None:
        """Count one record in: the digests of its pictures."""
        if split == TRAIN:
            self._train.update(pictures)
        else:
            self._others.setdefault(split, []).append(tuple(pictures))

    def counts(self) -> dict[str, int]:
        """{split: records with a picture that is also in the train split}, where there are any."""
        found = {
            split: sum(any(one in self._train for one in own) for own in records)
            for split, records in sorted(self._others.items())
        }
        return {split: count for split, count in found.items() if count}
