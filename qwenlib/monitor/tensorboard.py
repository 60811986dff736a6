"""TensorBoard event files of a run's metrics, when asked for (package tensorboardX)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

from qwenlib.errors import Refused

FOLDER = "tensorboard"
MISSING = "TensorBoard event files need the package tensorboardX: pip install tensorboardX"
SCALARS = {
    "loss": "train/loss",
    "lr": "train/learning_rate",
    "loss_scale": "train/loss_scale",
    "global_norm": "train/global_norm",
    "overflow": "train/overflow",
    "per_step_time_ms": "speed/step_time_ms",
    "tokens_per_second": "speed/tokens_per_second",
    "tokens_per_second_per_rank": "speed/tokens_per_second_per_rank",
    "real_tokens_per_second": "speed/real_tokens_per_second",
    "mfu": "speed/mfu",
}
"""Column of the metrics -> name in TensorBoard."""


def writer_class() -> Any:
    """tensorboardX's writer; asked for before the ranks start.

    Raises:
        Refused: tensorboardX is not installed.
    """
    # MindSpore's generated code works with protobuf's Python implementation only; imported after the other one (which
    # tensorboardX would bring in), MindSpore ends the whole process.
    os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise Refused(MISSING) from None
    return SummaryWriter


class EventWriter:
    """Writes metrics into ``folder`` as they come.

    Raises:
        Refused: tensorboardX is not installed.
    """

    def __init__(self, folder: Union[str, Path]):
        self.folder = Path(folder)
        self._writer: Any = writer_class()(str(self.folder))

    def add(self, records: List[Dict[str, Any]]) -> None:
        """Add steps; a value that was not in the log (or not finite) is left out."""
        for record in records:
            for column, name in SCALARS.items():
                if record.get(column) is not None:
                    self._writer.add_scalar(name, float(record[column]), record["step"])

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def export(run_dir: Union[str, Path], folder: Optional[Union[str, Path]] = None) -> Path:
    """Write the metrics of a run as event files below ``run_dir/tensorboard`` (or ``folder``) and return the folder.

    Raises:
        Refused: tensorboardX is not installed, or the run has no metrics.
    """
    from qwenlib.monitor.metrics import read_records

    records = read_records(run_dir)
    if not records:
        raise Refused(f"{run_dir} has no metrics (metrics.jsonl): nothing to export.")
    writer = EventWriter(folder or Path(run_dir) / FOLDER)
    writer.add(records)
    writer.close()
    return writer.folder
