"""Where the engine stands: beside bare asyncio, beside what people write, beside what is best.

``python -m benchmarks [--quick] [--json FILE] [SECTION…]``. Every figure is a ratio of two things
measured in turn in one run; see `measure`.
"""
