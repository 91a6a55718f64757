"""MLflow, Optuna and Snakemake: the only modules that know them."""
