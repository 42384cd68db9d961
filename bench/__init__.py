"""Measurements of both systems under the same load, each figure beside its limit in the same run."""
