"""Sections of the report, one file per job."""
