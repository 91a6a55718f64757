"""Make tables and figures from the files of finished runs. Imports no torch."""
