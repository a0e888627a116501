"""Tests of the search, against devices whose limits are known."""

import random
import unittest

from search import NDR, PDR, PHASES, Goal, Search, Trial, durations


class Device:
    """Forwards up to a limit; what is above is lost. `noise` is the share lost by chance in one of ten trials."""

    def __init__(self, limit, noise=0.0, seed=1):
        self.limit, self.noise, self.chance = limit, noise, random.Random(seed)

    def measure(self, load, duration):
        sent = round(load * duration)
        received = min(sent, round(self.limit * duration))
        if self.noise and self.chance.random() < 0.1:
            received -= round(sent * self.noise)
        return Trial(load, duration, sent, received)


class SearchTest(unittest.TestCase):
    def test_the_limit_of_a_device_lies_between_the_bounds(self):
        for limit in (1_234.0, 1e6, 7_654_321.0, 14_800_000.0):
            search = Search(Device(limit).measure, 1_000.0, 14_880_952.0)
            found = search.find(NDR)
            self.assertLessEqual(found.lower.load, limit * 1.000001)
            self.assertGreater(found.upper.load, limit * 0.999999)
            self.assertLessEqual(found.upper.load - found.lower.load, NDR.width * found.upper.load)
            self.assertEqual(found.lower.duration, found.upper.duration)
            self.assertAlmostEqual(found.lower.duration, NDR.duration)

    def test_a_goal_with_loss_lies_above_one_without(self):
        search = Search(Device(1e6).measure, 1_000.0, 14_880_952.0)
        ndr, pdr = search.find(NDR), search.find(PDR)
        # At 0.5 % loss, 1.005 times the limit is offered.
        self.assertLessEqual(ndr.lower.load, pdr.lower.load)
        self.assertGreater(pdr.upper.load, 1e6 * 1.004)
        self.assertLess(pdr.lower.load, 1e6 * 1.006)

    def test_what_cannot_be_bounded_is_said(self):
        fast = Search(Device(1e9).measure, 1_000.0, 1e6).find(NDR)
        self.assertEqual((fast.lower.load, fast.upper), (1e6, None))
        dead = Search(Device(0.0).measure, 1_000.0, 1e6).find(NDR)
        self.assertIsNone(dead.lower)
        self.assertEqual(dead.upper.load, 1_000.0)

    def test_long_trials_decide_over_lucky_short_ones(self):
        # Short trials lose nothing: queues hold what is too much.
        class Queue(Device):
            def measure(self, load, duration):
                sent = round(load * duration)
                return Trial(load, duration, sent, min(sent, round(self.limit * duration) + 200_000))

        found = Search(Queue(1e6).measure, 1_000.0, 14_880_952.0).find(NDR)
        self.assertLess(found.lower.load, 1e6 * 1.02)

    def test_most_trials_are_short(self):
        search = Search(Device(3e6).measure, 1_000.0, 14_880_952.0)
        search.find(NDR)
        total = sum(trial.duration for trial in search.trials)
        self.assertLess(total, 8 * NDR.duration, [(trial.load, trial.duration) for trial in search.trials])

    def test_chance_loss_ends_the_search_all_the_same(self):
        for seed in range(20):
            search = Search(Device(2e6, noise=0.001, seed=seed).measure, 1_000.0, 14_880_952.0)
            found = search.find(NDR)
            self.assertIsNotNone(found.upper)
            self.assertLess(len(search.trials), 200)

    def test_phases_grow(self):
        grown = durations(Goal("x", 0.0, duration=60.0))
        self.assertEqual(len(grown), PHASES)
        self.assertEqual(sorted(grown), grown)
        self.assertAlmostEqual(grown[-1], 60.0)


if __name__ == "__main__":
    unittest.main()
