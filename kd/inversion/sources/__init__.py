"""Data-free sources, one file each; kd/registry/sources.py names them."""
