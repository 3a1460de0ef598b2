"""The command line, as ``quantum-async`` and as ``python -m quantum_async``."""

import sys


def main() -> None:
    """Run the command line, or say what to install for it."""
    try:
        from quantum_async.cli import command_line
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        sys.stderr.write("The command line needs click: pip install 'quantum-async[cli]'\n")
        sys.exit(2)
    command_line(prog_name="quantum-async")


if __name__ == "__main__":
    main()
