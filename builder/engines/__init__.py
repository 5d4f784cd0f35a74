"""Engines behind `builder.engine.BuildEngine`."""
