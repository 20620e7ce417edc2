"""Pictures that the train split and another split share: an evaluation on them measures memory."""

from collections.abc import Iterable

TRAIN = "train"


class Copies:
    """Counter of the records of other splits that share a picture with the train split, as records stream by."""

    def __init__(self) -> None:
        self._train: set[bytes] = set()
        self._others: dict[str, list[tuple[bytes, ...]]] = {}

    def add(self, split: str, pictures: Iterable[bytes]) -> None:
        """Count a record by the digests of its pictures."""
        if split == TRAIN:
            self._train.update(pictures)
        else:
            self._others.setdefault(split, []).append(tuple(pictures))

    def counts(self) -> dict[str, int]:
        """Return {split: records with a picture that the train split has too}, without the splits that have none."""
        found = {
            split: sum(any(one in self._train for one in own) for own in records)
            for split, records in sorted(self._others.items())
        }
        return {split: count for split, count in found.items() if count}
