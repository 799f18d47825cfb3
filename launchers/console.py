"""`gamut COMMAND ...`: all commands under one name, each imported only when it is used."""

from __future__ import annotations

import importlib
import sys

from gamut.commands import COMMANDS, ROOT, command, version
from gamut.errors import GamutError, nearest


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command named first in `argv` with the rest; returns its exit status."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if name == "--version":
        print(f"gamut {version() or f'in {ROOT}'}")
        return 0
    if name in ("", "-h", "--help"):
        print(usage(), file=sys.stdout if name else sys.stderr)
        return 0 if name else 2
    if name not in COMMANDS:
        raise GamutError(f"There is no command {name!r}{nearest(name, list(COMMANDS))}. See gamut --help.")
    return importlib.import_module(COMMANDS[name][0]).main(rest)


def usage() -> str:
    wide = max(map(len, COMMANDS)) + 2
    commands = "\n".join(f"  {name:<{wide}}{about}" for name, (_, about) in COMMANDS.items())
    more = "`gamut COMMAND --help` describes a command, `gamut --version` prints the version."
    return f"usage: gamut COMMAND ...\n\n{commands}\n\n{more}"


if __name__ == "__main__":
    sys.exit(main())
