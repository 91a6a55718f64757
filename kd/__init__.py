"""kd: knowledge distillation as reproducible studies. Importing this package is quick and touches no GPU."""
