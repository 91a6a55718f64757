"""Distillation losses, one file each; their entries are in kd/registry/losses.py."""
