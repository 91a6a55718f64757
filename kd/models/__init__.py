"""Networks, one file each; kd/registry/models.py names them, `kd.models.build` builds them."""
