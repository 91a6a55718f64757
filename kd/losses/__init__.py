"""Distillation losses, one file each; kd/registry/losses.py names them."""
