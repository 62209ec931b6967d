"""Measurements of whole subnets, run by `scripts/bench.py`.

Each module has DESCRIPTION, add_arguments(parser) and run(args) -> {"name", "rows", ...}. Rows are plain JSON values;
`failures`, if not empty, are why the exit code is 1.
"""
