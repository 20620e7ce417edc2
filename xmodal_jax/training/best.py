"""Follow one number of the quick evaluations: which step is the best, and whether the run should stop early."""

from dataclasses import asdict, dataclass
from typing import Any

from xmodal_jax.errors import UserError
from xmodal_jax.eval.tables import flat
from xmodal_jax.settings import EvalConfig


@dataclass(frozen=True)
class Standing:
    """The best evaluation so far, as a checkpoint keeps it.

    asked: `config.eval.keep_best`; name: path of the number that it means ("itc/rSum"); step, value: of the best
    evaluation (step 0: none yet); looked: step of the last evaluation; waited: evaluations since the best one.
    """

    asked: str = ""
    name: str = ""
    step: int = 0
    value: float = 0.0
    looked: int = 0
    waited: int = 0

    def as_notes(self) -> dict[str, Any]:
        """Return the standing as JSON for a checkpoint's notes."""
        return asdict(self)

    @classmethod
    def from_notes(cls, notes: dict[str, Any]) -> "Standing":
        """Return the standing that `as_notes` wrote; a new one where a checkpoint has none."""
        return cls(**{name: value for name, value in notes.items() if name in cls.__dataclass_fields__})


@dataclass
class BestWatch:
    """Compares quick evaluations by `config.eval.keep_best` and counts those that are no better."""

    config: EvalConfig
    standing: Standing = Standing()

    @property
    def on(self) -> bool:
        """True where the config names a number."""
        return bool(self.config.keep_best)

    def look(self, step: int, evaluation: dict[str, Any]) -> bool:
        """Take the evaluation at `step` into account and return True if it is the best so far."""
        asked = self.config.keep_best
        path, value = chosen(asked, evaluation)
        before = self.standing if self.standing.asked == asked else Standing()  # another number starts anew
        lowest = asked.startswith("-")
        ahead = value < before.value if lowest else value > before.value
        better = value == value and (before.step == 0 or ahead)
        if better:
            self.standing = Standing(asked, path, step, value, step, 0)
        else:
            self.standing = Standing(asked, path, before.step, before.value, step, before.waited + 1)
        return better

    @property
    def patience_over(self) -> bool:
        """True when as many evaluations as `config.eval.patience` came after the best one."""
        return self.standing.asked == self.config.keep_best and 0 < self.config.patience <= self.standing.waited

    def sentence(self, step: int) -> str:
        """Return what to say of a run that stops early at `step`."""
        found = self.standing
        return (
            f"stopped early at step {step}: {found.name} was best at step {found.step} ({found.value:.4g}) and no "
            f"better in {found.waited} evaluations since; a larger config.eval.patience goes on from here"
        )


def chosen(name: str, evaluation: dict[str, Any]) -> tuple[str, float]:
    """Return (path, value) of the number that `name` means: its path, or the end of one in any case ("rsum").

    Of several that end so the first counts, which is that of the embeddings. A "-" before the name is left out.

    Raises UserError, with the numbers there are, for a name of none.
    """
    numbers = {path: float(value) for path, value in flat(evaluation).items() if isinstance(value, (int, float))}
    wanted = name.removeprefix("-")
    if wanted in numbers:
        return wanted, numbers[wanted]
    for path, value in numbers.items():
        if f"/{path}".lower().endswith(f"/{wanted}".lower()):
            return path, value
    raise UserError(
        f"config.eval.keep_best is '{name}', and the quick evaluation has no such number; write one of "
        f"{', '.join(numbers)}"
    )
