"""The workbook as a job of a platform: ``python -m qwenlib.jobs.modelarts --help``."""
