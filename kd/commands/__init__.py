"""The command line: one file per command of `python -m kd`, with its arguments (`add`) and what it does (`do`).

What a command needs of torch, pandas or MLflow it imports when it is used: `--help` answers at once.
"""
