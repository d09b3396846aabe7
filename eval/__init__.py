"""The judge of scores: metrics with intervals, and a report to look at. Imports no torch."""
