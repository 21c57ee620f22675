"""The training side of seqkd: pseudolabels in, a measured student out."""
