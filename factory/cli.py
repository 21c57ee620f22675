"""The command line: one command, one verb.

Libraries that take time to import are imported by the command that needs them.
"""

from __future__ import annotations

import sys

import typer

from factory.commands import exchanging, looking, making, showing, starting
from factory.errors import SeqkdError

COMMANDS = (
    *(starting.init, starting.check, starting.schema),
    *(making.run, making.generate, making.score, making.judge, making.train, making.evaluate),
    *(making.card, showing.report, exchanging.import_, exchanging.export),
    exchanging.deliver,
    *(looking.sql, looking.inspect, looking.compare, looking.diff),
    *(looking.status, looking.verify, starting.doctor),
)

app = typer.Typer(
    name="seqkd",
    help="Offline sequence-level knowledge distillation: one manifest, one command.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in COMMANDS:
    app.command(command.__name__.rstrip("_"))(command)


def main() -> None:
    """Entry of the `seqkd` command. An error of ours is one line on standard error."""
    try:
        app()
    except SeqkdError as error:
        _fail(str(error), error.exit_status)
    except OSError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("stopped: the same command goes on from here", 130)


def _fail(message: str, status: int) -> None:
    sys.stderr.write(f"seqkd: {message}\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
