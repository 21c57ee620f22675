"""The data side of seqkd: sources in, measured and selected pseudolabels out."""

__version__ = "0.1.0"
