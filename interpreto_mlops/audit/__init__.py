"""Policies, comparisons, the SQL catalogue and reports: what is asked of evidence that is there."""
