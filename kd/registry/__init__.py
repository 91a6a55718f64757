"""What there is, by name: losses, networks, data sets. Imports no torch."""
