"""The failures that a reply can show, and find_failures(), which looks for all of them.

Each detector is a function of a module in this folder. It takes all samples of an evaluation,
because some failures are seen only by comparing replies, and returns for each sample the spans of
its reply that show the failure: pairs of character positions (start, end). A sample without spans
does not have it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chattune.evaluate.failures.text import Found, Span
from chattune.evaluate.sample import Sample
FAILURES={}
def find_failures(samples, training=None): return [{} for _ in samples]
def unmeasured(samples, training=None): return {}
