"""The program's version, also where it runs from a clone and no package metadata exist; equal to pyproject.toml's by test."""

VERSION = "0.1.0"
