"""Whole configurations by name. Each is a change to another, so that what differs can be read."""

from __future__ import annotations

from maskocr_core.config import Codebook, Config, Data, Mask, Model, Section, Sweep, Training


def base() -> Config:
    """The paper's geometry and the authors' default size: 512 wide, 6 blocks, 4,096 clusters. Days on two cores."""
    return Config(recipe="base")


def small() -> Config:
    """192 wide, 6 blocks, 512 clusters: hours on a laptop."""
    return _change(
        base(),
        "small",
        model=Model(width=192, depth=6, heads=3),
        codebook=Codebook(clusters=512),
        pretrain=Training(steps=4000, batch=32, learning_rate=5e-4),
    )


def pilot() -> Config:
    """What `make pilot` runs: all of it, on two cores, in under a quarter of an hour."""
    return _change(
        small(),
        "pilot",
        model=Model(width=128, depth=4, heads=4),
        codebook=Codebook(clusters=512, sample_lines=1000),
        pretrain=Training(steps=600, batch=32, learning_rate=1e-3, checkpoint_every=50, workers=2),
        # 2e-3: the best of 1e-3, 2e-3 and 3e-3 for scratch on the validation lines, so that the baseline is a strong one.
        sweep=Sweep(budgets=(400,), learning_rates=(2e-3,), steps=480, transfer_steps=320, validations=8),
    )


def smoke() -> Config:
    """Every stage for real in seconds, for tests: it learns next to nothing."""
    return _change(
        pilot(),
        "smoke",
        data=Data(height=32, shard_lines=64),
        model=Model(width=32, depth=2, heads=2),
        codebook=Codebook(clusters=16, components=8, sample_lines=64),
        mask=Mask(),
        pretrain=Training(steps=8, batch=8, learning_rate=1e-3, checkpoint_every=2),
        sweep=Sweep(budgets=(32,), steps=8, transfer_steps=4, batch=8, validations=4, jobs=0),
    )


RECIPES = {function.__name__: function for function in (pilot, smoke, small, base)}


def _change(config: Config, name: str, **sections: Section) -> Config:
    return config.model_copy(update={"recipe": name, **sections})
