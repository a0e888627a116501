"""Search for the highest load at which no more than a share of packets is lost, as MLRsearch does
(draft-ietf-bmwg-mlrsearch): short trials first, whose bounds longer ones confirm or move."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """What is looked for."""

    name: str
    loss: float  # highest share of packets lost
    width: float = 0.005  # of the bounds, relative to the upper one
    duration: float = 30.0  # seconds, of the trials that decide


@dataclass(frozen=True)
class Trial:
    """One measurement."""

    load: float  # packets a second, both directions together
    duration: float  # seconds
    sent: int
    received: int

    @property
    def loss(self):
        """Share of packets lost."""
        return 1.0 - self.received / self.sent if self.sent else 0.0


@dataclass(frozen=True)
class Found:
    """Between `lower`, which the goal allows, and `upper`, which it does not.

    `lower` is None where even the lowest load loses too much, `upper` where the highest does not."""

    goal: Goal
    lower: Trial | None
    upper: Trial | None


NDR = Goal("NDR", 0.0)
PDR = Goal("PDR", 0.005)
FIRST_DURATION = 1.0
PHASES = 3


def durations(goal):
    """Of a goal's phases, growing by the same factor."""
    first = min(FIRST_DURATION, goal.duration)
    factor = (goal.duration / first) ** (1.0 / (PHASES - 1))
    return [first * factor**phase for phase in range(PHASES)]


def width_of(phase, goal):
    """Coarser in earlier phases."""
    return min(0.5, goal.width * 2 ** (PHASES - 1 - phase))


class Search:
    """Over loads from `least` to `most`; `measure(load, duration)` makes a trial."""

    def __init__(self, measure, least, most):
        if not 0 < least < most:
            raise ValueError(f"loads from {least} to {most} packets a second")
        self.measure, self.least, self.most = measure, least, most
        self.trials = []

    def trial(self, load, duration):
        """A new trial."""
        made = self.measure(load, duration)
        self.trials.append(made)
        return made

    def bounds(self, goal, duration):
        """What trials of a duration, or longer, say."""
        done = [trial for trial in self.trials if trial.duration >= duration * 0.999]
        bad = [trial for trial in done if trial.loss > goal.loss]
        upper = min(bad, key=lambda trial: trial.load, default=None)
        # A higher load without loss beside a lower one with it is luck.
        good = [
            trial for trial in done if trial.loss <= goal.loss and (upper is None or trial.load < upper.load)
        ]
        return max(good, key=lambda trial: trial.load, default=None), upper

    def find(self, goal):
        """The bounds of a goal."""
        guess = (self.least, self.most)
        for phase, duration in enumerate(durations(goal)):
            self.confirm(goal, duration, guess)
            lower, upper = self.narrow(goal, duration, width_of(phase, goal))
            guess = (lower.load if lower else self.least, upper.load if upper else self.most)
        return Found(goal, *self.bounds(goal, goal.duration))

    def confirm(self, goal, duration, guess):
        """Has a bound on either side at this duration, starting from those of shorter trials."""
        low, high = guess
        step = max(high / low, 1.0 + goal.width)
        while (lower := self.bounds(goal, duration)[0]) is None:
            self.trial(low, duration)
            if self.bounds(goal, duration)[0] is None:
                if low <= self.least:
                    return
                low = max(self.least, low / step)
                step *= step
        step = max(high / max(lower.load, low), 1.0 + goal.width)
        high = max(high, lower.load)
        while self.bounds(goal, duration)[1] is None:
            self.trial(high, duration)
            if self.bounds(goal, duration)[1] is None:
                if high >= self.most:
                    return
                high = min(self.most, high * step)
                step *= step

    def narrow(self, goal, duration, width):
        """Halves until the bounds are near each other."""
        while True:
            lower, upper = self.bounds(goal, duration)
            if lower is None:
                if upper is None or upper.load <= self.least:
                    return lower, upper
                self.trial(max(self.least, upper.load / 2), duration)
                continue
            if upper is None or upper.load - lower.load <= width * upper.load:
                return lower, upper
            self.trial(math.sqrt(lower.load * upper.load), duration)
