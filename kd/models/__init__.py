"""Networks by name. This file imports no torch, so that names can be checked before any job starts."""
