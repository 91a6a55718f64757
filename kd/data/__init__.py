"""Data sets, one file each; kd/registry/datasets.py names them."""
