"""What all verbs share: the parser, log lines for people, and one-line errors for what the user can mend."""

import argparse
import contextlib
import pathlib
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import NoReturn

_PACKAGE = pathlib.Path(__file__).parents[1]  # glm_jax/


class Parser(argparse.ArgumentParser):
    """The arguments of a verb: two examples in the help, no abbreviations, errors in one line with exit code 2."""

    def __init__(self, prog: str, description: str, examples: Sequence[str]):
        super().__init__(
            prog=prog, description=description, epilog="\n  ".join(("examples:", *examples)), allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        """As argparse does it; an unknown option is answered first, with the nearest names."""
        words = sys.argv[1:] if args is None else args
        known = [name for action in self._actions for name in action.option_strings]
        for word in words:
            if word.startswith("--") and (name := word.partition("=")[0]) not in known:
                from glm_jax.files import nearest

                self.error(f"unknown argument {word!r}; nearest: {nearest(name, known)}")
        options, rest = self.parse_known_args(words, namespace)
        if rest:
            self.error(f"unknown argument {rest[0]!r}")
        return options

    def error(self, message: str) -> NoReturn:
        """Ends the process with one line."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def choose(prog: str, summary: str, choices: Mapping[str, str], arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Splits the arguments into the name of one of `choices`, which are described in a line each, and the rest.

    Prints the list and ends the process with code 0 where no name is given or help is asked for; ends it with one line
    and code 2 for an unknown name.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, choices))
        lines = [f"usage: {prog} NAME [arguments]", "", summary, ""]
        lines += [f"  {name:<{width}}  {text}" for name, text in choices.items()]
        print("\n".join([*lines, "", f"{prog} NAME --help explains one of them."]))
        sys.exit(0)
    name, *rest = arguments
    if name not in choices:
        from glm_jax.files import nearest

        print(f"{prog}: unknown name {name!r}; nearest: {nearest(name, choices)}", file=sys.stderr)
        sys.exit(2)
    return name, rest


def add_host_options(parser: argparse.ArgumentParser) -> None:
    """The options of a run on several hosts."""
    parser.add_argument("--hosts", help="auto, slurm, tpu, off, or COORDINATOR:PORT,COUNT,INDEX (docs/launch.md)")
    parser.add_argument(
        "--host_timeout", type=float, metavar="SECONDS", help="within which every host must arrive; default: 300"
    )


@contextlib.contextmanager
def one_line_errors():
    """Ends the process with one line for an error that this package raised; anything else keeps its traceback.

    After Ctrl-C the exit code is that of the interrupt (`training.trainer.Interrupted`), by default 130.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:  # one whose state is saved has said so
        if not str(interrupt):
            print("interrupted", file=sys.stderr)
        sys.exit(getattr(interrupt, "exit_code", 130))
    except (ValueError, RuntimeError, FloatingPointError, OSError) as error:
        raised_in = pathlib.Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if _PACKAGE not in raised_in.parents and not isinstance(error, OSError):
            raise
        sys.exit(f"{type(error).__name__}: {error}")
