"""From YAML to what one run needs: shapes, merging, checks, identity. Imports no torch."""
