"""Candidates made elsewhere in, pseudolabels out."""
