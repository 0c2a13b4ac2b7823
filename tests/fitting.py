"""Commands in a folder of their own: images to fit to, and the command line in a process."""

import os
import subprocess
import sys

import numpy as np


def write_images(path, *, train, test):
    """Write an .npz of so many grey images of 8 x 8 with three classes, always the same ones."""
    rng = np.random.default_rng(0)
    np.savez(
        path,
        train_images=rng.integers(0, 255, (train, 1, 8, 8), np.uint8),
        train_labels=rng.integers(0, 3, train),
        test_images=rng.integers(0, 255, (test, 1, 8, 8), np.uint8),
        test_labels=rng.integers(0, 3, test),
        mean=np.float32([0.5]),
        std=np.float32([0.25]),
    )


def command(*arguments):
    """The command line as a list for a process."""
    return [sys.executable, "-m", "harness.cli", *arguments]


def environment(folder, **extra):
    """A process's environment, in which this code is run and the settings are the folder's."""
    here = os.pathsep.join(sys.path)
    config = str(folder / "config")
    return {**os.environ, "PYTHONPATH": here, "BOARDFIT_CONFIG_DIR": config, **extra}


def boardfit(folder, *arguments, **extra):
    """A finished command of boardfit that ran in ``folder``, with what it printed."""
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(folder, **extra),
        capture_output=True,
        text=True,
        timeout=280,
    )
