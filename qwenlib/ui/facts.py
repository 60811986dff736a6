"""A mapping as a table that people read."""

from __future__ import annotations

from typing import Any, Dict, Mapping


def facts(values: Mapping[str, Any], column: str = "value") -> Any:
    """``values`` as a pandas DataFrame with one column of texts; a mapping in it is spread over rows of its own.

    Counts have thousands separators, floats four significant digits (from 1,000 on none behind the point); what is
    empty reads ``none``. Long texts are whole only where pandas' ``display.max_colwidth`` allows it.
    """
    import pandas

    return pandas.DataFrame({column: _texts(values)}, dtype=object)


def _texts(values: Mapping[str, Any], before: str = "") -> Dict[str, str]:
    found: Dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found.update(_texts(value, f"{before}{name}: "))
        else:
            found[f"{before}{name}"] = _text(value)
    return found


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if value is None or (hasattr(value, "__len__") and not len(value)):
        return "none"
    return str(value)
