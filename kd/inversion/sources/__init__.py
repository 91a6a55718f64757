"""Data-free sources, one file each; kd/registry/sources.py names them. base.py and descent.py are what they share."""
