"""The same graphs under what one would pick instead, each in an environment of its own.

``python -m benchmarks.peers [--only NAMES] [--json FILE] [--write PAGE]``. `catalogue` lists the
engines, `engines/` has a small file for each, `work` is what they all are given.
"""
