"""Typed configuration: one YAML dialect, dotted overrides, errors that name the remedy."""

from agent_r1.config.checks import needs_critic, needs_reference
from agent_r1.config.load import ConfigWarning, load_config, load_section, to_yaml
from agent_r1.config.schema import Config

__all__ = [
    "Config",
    "ConfigWarning",
    "load_config",
    "load_section",
    "needs_critic",
    "needs_reference",
    "to_yaml",
]
