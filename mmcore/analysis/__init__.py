"""What a shared space says about things: classes by prompts, by neighbours, by a linear probe."""

from mmcore.analysis.probe import LinearProbe, linear_probe

__all__ = ["LinearProbe", "linear_probe"]
