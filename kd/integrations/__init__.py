"""The only imports of mlflow and optuna, and what the workflow's scripts call."""
