"""What any long job needs and no number depends on."""
