"""The one exception for what a user can put right: bad input, a wrong option, a missing file."""


class InputError(Exception):
    """Raised where a bad value enters. The message names the rule, the value and the choices.

    Entry files turn it into one line on stderr and exit code 2 (`data.cli.run`).
    """


def unknown(kind: str, value: object, choices: object) -> InputError:
    """An `InputError` for a name that is not in a registry, listing the names that are."""
    names = ", ".join(sorted(str(choice) for choice in choices))  # type: ignore[attr-defined]
    return InputError(f"unknown {kind} '{value}'; choose one of: {names}")
