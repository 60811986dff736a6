"""The shipped alpaca-format sample: 240 records, half English and half Chinese, our own text."""

from pathlib import Path


def sample_path() -> Path:
    """Where ``alpaca_sample.json`` lies."""
    return Path(__file__).parent / "alpaca_sample.json"
