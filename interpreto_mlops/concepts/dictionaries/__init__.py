"""One file for each family of concept dictionaries."""
