# SPDX-License-Identifier: Apache-2.0
"""The command `zspa`: entry point, and what works when Typer is not installed."""

from __future__ import annotations

import os
import sys

# What the optional commands import, by the name of the module.
EXTRA = frozenset({"typer", "rich", "skimage", "matplotlib", "PIL", "numpy", "scipy"})
INSTALL = 'pip install "zspa_kernels[demo]"'
INSTALL_MODELS = 'pip install "zspa_kernels[demo,hf]"'


def missing(error: ModuleNotFoundError) -> str | None:
    """What to install for a module of the extra that is missing; None for any other module."""
    name = (error.name or "").partition(".")[0]
    if name == "transformers":
        return f"zspa: {name} is not installed; this command needs: {INSTALL_MODELS}"
    if name not in EXTRA:
        return None
    return f"zspa: {name} is not installed; this command needs: {INSTALL}"


def main() -> None:
    """Runs the command line and exits: 0 done, 1 failed, 2 wrong usage."""
    try:
        try:
            _run()
        finally:
            if sys.stdout is not None:  # as where it was closed
                sys.stdout.flush()  # Python would tell of it later, in its own words
    except OSError as error:
        if error.filename is not None:  # not about what is printed
            raise
        # Or else Python tries to write what is left once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        reader_left = isinstance(error, BrokenPipeError)  # as in `zspa methods | head -1`
        sys.exit(1 if reader_left else f"zspa: cannot write the output: {error.strerror}")


def _run() -> None:
    try:
        from zspa_kernels.cli_app import app
    except ModuleNotFoundError as error:
        message = missing(error)
        if message is None:
            raise
        sys.exit(_without_typer(sys.argv[1:], message))
    app(prog_name="zspa")


def _without_typer(arguments: list[str], message: str) -> int:
    """The reports need nothing but the package: people run them when something is missing."""
    if arguments == ["--version"]:
        from zspa_kernels import __version__

        print(f"zspa_kernels {__version__}")
        return 0
    if arguments in (["doctor"], ["doctor", "--json"]):
        from zspa_kernels import _doctor

        print(_doctor.report(as_json="--json" in arguments))
        return 0
    print(f"{message} (`zspa doctor` and `zspa --version` do without)", file=sys.stderr)
    return 1


if __name__ == "__main__":
    main()
