"""`python -m pangea` is the `pangea` program that belongs to this environment."""

from __future__ import annotations

import os
import subprocess
import sys

from ._binary import find_binary
from ._errors import NotFound


def main() -> int:
    try:
        command = [find_binary(), *sys.argv[1:]]
    except NotFound as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if os.name == "posix":
        # The program takes the place of this process, so that signals reach it.
        os.execv(command[0], command)
    return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
