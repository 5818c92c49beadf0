"""Typed configuration: one YAML dialect, dotted overrides, errors that name the remedy."""

from agent_r1.config.schema import Config

__all__ = ["Config"]
