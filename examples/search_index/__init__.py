"""The main job: a search index over a folder of Python files, built as one graph.

    python -m examples.search_index [DIR] [--db FILE]

The engine is used in one file only, `pipeline.py`; the rest is plain Python:

* `documents.py`: which files there are, and what one file says (`ast`);
* `passages.py`: docstrings cut into passages, terms counted and weighed;
* `store.py`: the SQLite FTS5 index, written and asked;
* `progress.py`: events to lines on a terminal or in a pipe;
* `report.py`: a run's records to the figures printed at the end.
"""
