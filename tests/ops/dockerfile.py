"""Reads a Dockerfile: its stages with their instructions, in the order of the file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Stage:
    """``steps`` are (instruction in capitals, the rest with its continuation lines joined)."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [rest for word, rest in self.steps if word == instruction]

    def last(self, instruction: str) -> str:
        """The one that counts where an instruction replaces the one before."""
        return self.all(instruction)[-1]


def stages(path: Path) -> list[Stage]:
    """The stages, build arguments before the first FROM put in with their defaults."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.M)
    lines = [each for each in re.sub(r"\s*\\\n\s*", " ", text).splitlines() if each.strip()]
    found: list[Stage] = []
    arguments: dict[str, str] = {}
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "ARG" and not found:
            name, _, value = rest.partition("=")
            arguments[name] = value
        elif word == "FROM":
            base, _, name = rest.partition(" AS ")
            for argument, value in arguments.items():
                base = base.replace(f"${{{argument}}}", value)
            found.append(Stage(base, name))
        else:
            found[-1].steps.append((word, rest.strip()))
    return found
