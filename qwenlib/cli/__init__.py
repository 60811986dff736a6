"""One thin typer layer over the rooms."""
