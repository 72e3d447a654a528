"""The configuration: ``load`` reads files into a frozen ``Config``, ``generate`` writes a first one."""

from ranvier.config.generate import GeneratedFile, generate, generate_files
from ranvier.config.load import Config, load
from ranvier.config.problems import ConfigError, Problem

__all__ = ["Config", "ConfigError", "GeneratedFile", "Problem", "generate", "generate_files", "load"]
