"""Common options of all training programs, allowed ranges, and every problem at once."""

import math
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_type_hints

_FINITE = 1.7e308


@dataclass(frozen=True)
class Between:
    """Allowed range of a number, written in a field's annotation; NaN is never inside."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False  # excludes ``low`` itself

    def __contains__(self, value: float) -> bool:
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        low = f"{'>' if self.above else '>='} {self.low:g}" if self.low > -math.inf else ""
        high = "finite" if self.high == _FINITE else f"<= {self.high:g}"
        high = high if self.high < math.inf else ""
        return " and ".join(filter(None, (low, high)))


NonNegative = Annotated[float, Between(0, _FINITE)]
Positive = Annotated[float, Between(0, _FINITE, above=True)]
Count = Annotated[int, Between(1)]
CountOrZero = Annotated[int, Between(0)]


@dataclass(frozen=True)
class RunConfig:
    """Options that every application's training command takes."""

    out: str = ""
    """Run folder to create. Empty: runs/<application>-<preset>, with a number when it is taken."""
    resume: str = ""
    """Run folder, or one checkpoint in it, to continue exactly where it stopped."""
    seed: CountOrZero = 0
    """Seed of all random numbers; a run is a function of its configuration and its seed."""
    data: str = "data"
    """Folder of the data sets; fetched into it when missing."""
    checkpoint_every: Count = 1
    """Epochs between checkpoints; another is written on SIGTERM, on Ctrl-C and at the end."""
    keep: Count = 2
    """Number of newest checkpoints kept."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Autocast of the forward pass, through Accelerate; parameters and losses stay float32."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where metrics go besides metrics.jsonl; the named packages must be installed."""
    push_to_hub: str = ""
    """Hub repository (user/name) that receives the trained model at the end. Empty: none."""

    # Options that do not change the result, so that a resumed run may change them.
    FREE_ON_RESUME = frozenset(
        {"resume", "data", "checkpoint_every", "keep", "trackers", "push_to_hub"}
    )

    def conflicts(self) -> list[str]:
        """Problems that involve more than one field, each a line; applications override this."""
        return []


@dataclass(frozen=True)
class EvaluationOptions:
    """Options that every evaluation takes."""

    data: str = "data"
    """Folder of the data sets."""
    json: str = ""
    """File that receives every metric, with the environment."""


def option(name: str) -> str:
    """Field name -> the option as typed."""
    return "--" + name.replace("_", "-")


def problems(config: Any) -> list[str]:
    """A message for each conflict and each value outside its range, with option and range."""
    hints: dict[str, Any] = get_type_hints(type(config), include_extras=True)
    messages = []
    for field in fields(config):
        value = getattr(config, field.name)
        for bound in getattr(hints[field.name], "__metadata__", ()):
            if isinstance(bound, Between) and value not in bound:
                messages.append(f"{option(field.name)} {value}: must be {bound}")
    return messages + (config.conflicts() if hasattr(config, "conflicts") else [])
