"""Where the `pangea` program is. Wheels for one platform bring it; it is never started here."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from ._errors import NotFound

_NAME = "pangea" + (sysconfig.get_config_var("EXE") or "")


def _folders() -> Iterator[Path]:
    """Where installers put the programs of a package, the likeliest first."""
    yield Path(sysconfig.get_path("scripts"))
    # An environment that runs on top of another one, with its packages.
    yield Path(sysconfig.get_path("scripts", vars={"base": sys.base_prefix}))
    yield Path(sysconfig.get_path("scripts", scheme=sysconfig.get_preferred_scheme("user")))
    # `pip install --target FOLDER`.
    yield Path(__file__).resolve().parent.parent / "bin"


def find_binary() -> str:
    """The path of the `pangea` program: the one in the environment variable `PANGEA_BIN`, else the one that was installed
    with this package, else the first on the `PATH`.

    Raises `NotFound`, which says what to do.
    """
    named = os.environ.get("PANGEA_BIN")
    if named:
        if not os.access(named, os.X_OK):
            raise NotFound(f"PANGEA_BIN is {named!r}, which is not a program")
        return named
    for folder in _folders():
        path = folder / _NAME
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
    found = shutil.which(_NAME)
    if found is None:
        raise NotFound(
            "the program `pangea` is not installed: install a wheel of this package that is made for this platform, "
            "or put the program on the PATH"
        )
    return found
