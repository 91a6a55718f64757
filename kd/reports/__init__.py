"""From the files of finished runs to tables and figures. Imports no torch."""
