"""Scoring a checkpoint on tasks."""
