"""The page that a study ends with, report.html: one file that needs no other and asks for none. Imports no torch."""
