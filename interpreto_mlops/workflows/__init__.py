"""Whole jobs: from a model and a data set to runs, registered dictionaries and a report."""
