"""Tests of what the lab leaves behind. Needs root, for network namespaces."""

import os
import pathlib
import signal
import subprocess
import sys
import unittest

import vm


def namespaces():
    """Names of the machine's namespaces."""
    return [line.split()[0] for line in vm.run("ip", "netns", "list").splitlines() if line.strip()]


@unittest.skipUnless(os.geteuid() == 0, "needs root")
class LeftoversTest(unittest.TestCase):
    def test_what_a_killed_run_left_is_removed_and_a_running_ones_is_not(self):
        # Stands in for a run that is killed in the middle of its guest.
        code = "import os, time, vm\nwith vm.wiring(f'ringwall-vm-{os.getpid()}'):\n print('up', flush=True)\n time.sleep(60)"
        runs = [
            subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=pathlib.Path(vm.__file__).parent)
            for _ in range(2)
        ]
        killed, running = (f"ringwall-vm-{run.pid}" for run in runs)
        try:
            for run in runs:
                self.assertEqual(run.stdout.readline(), b"up\n")
            runs[0].send_signal(signal.SIGKILL)
            runs[0].wait()
            self.assertIn(killed, namespaces())
            vm.remove_leftovers()
            self.assertNotIn(killed, namespaces())
            self.assertIn(running, namespaces())
        finally:
            for run in runs:
                run.kill()
                run.wait()
                run.stdout.close()
            vm.remove_leftovers()
        self.assertNotIn(running, namespaces())


if __name__ == "__main__":
    unittest.main()
