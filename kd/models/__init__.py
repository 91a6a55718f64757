"""Networks, one file each; kd/registry/models.py names them."""
