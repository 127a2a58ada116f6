"""The scripts that languages are written in, told apart by the ranges of their letters."""

import re

_RANGES = {
    "Latin": "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff",
    "Greek": "\u0370-\u03ff\u1f00-\u1fff",
    "Cyrillic": "\u0400-\u052f",
    "Armenian": "\u0530-\u058f",
    "Hebrew": "\u05d0-\u05ea",
    "Arabic": "\u0620-\u064a\u0671-\u06d3\u0750-\u077f",
    "Devanagari": "\u0900-\u097f",
    "Bengali": "\u0980-\u09ff",
    "Gurmukhi": "\u0a00-\u0a7f",
    "Gujarati": "\u0a80-\u0aff",
    "Tamil": "\u0b80-\u0bff",
    "Telugu": "\u0c00-\u0c7f",
    "Kannada": "\u0c80-\u0cff",
    "Malayalam": "\u0d00-\u0d7f",
    "Sinhala": "\u0d80-\u0dff",
    "Thai": "\u0e00-\u0e7f",
    "Georgian": "\u10a0-\u10ff",
    "Hangul": "\u1100-\u11ff\uac00-\ud7af",
    "Chinese or Japanese": "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff",
}
_LETTERS = {name: re.compile(f"[{ranges}]") for name, ranges in _RANGES.items()}


def letters_of_scripts(text: str) -> dict[str, int]:
    """Count the letters of each script that occurs in a text."""
    if text.isascii():
        count = sum(map(str.isalpha, text))
        return {"Latin": count} if count else {}
    counts = {name: len(letters.findall(text)) for name, letters in _LETTERS.items()}
    return {name: count for name, count in counts.items() if count}


def main_script(text: str) -> str | None:
    """Return the script of more than half of a text's letters, or None if there is none."""
    counts = letters_of_scripts(text)
    name = max(counts, key=counts.__getitem__, default=None)
    return name if name and 2 * counts[name] > sum(counts.values()) else None
