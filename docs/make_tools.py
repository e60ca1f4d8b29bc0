"""Makes the pictures and numbers of docs/tools.md: run from the repository's root.

KERAS_BACKEND=torch PYTHONPATH=src:tests python docs/make_tools.py
"""

from __future__ import annotations

import io
from pathlib import Path

import keras
import numpy as np
from rich.console import Console

import batchnorm
from batchnorm.demo.data import batches, load
from batchnorm.tools.plots import drift_plot, histograms, profile_plot
from gallery import GALLERY
from tool_models import KINDS

HERE = Path(__file__).parent / "tools"


def main() -> None:
    HERE.mkdir(exist_ok=True)
    for name, sick in GALLERY.items():
        model, data = sick.make("ours")
        report = batchnorm.inspect(model, data)
        slug = name.replace(" ", "-").replace(".", "")
        profile_plot(report.profiles, report.diagnoses).savefig(HERE / f"{slug}.png", dpi=70)
        said = str(report.alarms()[0]) if report.alarms() else "no alarm"
        print(f"| {name} | {sick.words} | {said} |")
        if name == "momentum too slow":
            drift_plot(report.rows, report.diagnoses).savefig(HERE / "drift.png", dpi=70)
            histograms(report.profiles[:1]).savefig(HERE / "histograms.png", dpi=70)
            console = Console(record=True, width=110, file=io.StringIO())
            console.print(report)
            console.save_svg(str(HERE / "inspect.svg"), title="batchnorm inspect")
    for momentum in (0.99, 0.9):
        pairs = [digits(seed, momentum) for seed in range(5)]
        before, after = (100 * np.array(one) for one in zip(*pairs, strict=True))
        gain = after - before
        print(
            f"batch 4, momentum {momentum}: {before.mean():.1f} -> {after.mean():.1f} %, gain "
            f"{gain.mean():.1f} ± {gain.std(ddof=1):.1f} over {len(gain)} seeds, "
            f"least {gain.min():.1f}"
        )


def digits(seed: int, momentum: float, size: int = 4, steps: int = 250) -> tuple[float, float]:
    """Test accuracy of a network trained in small batches, before and after re-estimation."""
    keras.utils.set_random_seed(seed)
    data = load()
    model = keras.Sequential([keras.Input((64,))])
    for _ in range(2):
        model.add(keras.layers.Dense(32, use_bias=False))
        model.add(KINDS["ours"](momentum=momentum))
        model.add(keras.layers.ReLU())
    model.add(keras.layers.Dense(10))
    model.compile(
        keras.optimizers.SGD(0.05),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    for _, (images, labels) in zip(range(steps), batches(data, size, None, seed), strict=False):
        model.train_on_batch(images.reshape(-1, 64), labels)
    test = (data.test_images.reshape(-1, 64), data.test_labels)
    before = model.evaluate(*test, verbose=0)[1]
    batchnorm.reestimate(model, data.train_images.reshape(-1, 64), batch_size=256)
    return before, model.evaluate(*test, verbose=0)[1]


if __name__ == "__main__":
    main()
