"""What a client sends with a call so that it can be found again in the servers' traces and access logs."""

from itertools import count
from secrets import token_hex

Metadata = tuple[tuple[str, str], ...]


class CallIds:
    """Names the calls of one run of the client.

    Attributes:
        run: what all their `x-request-id` start with, 8 hexadecimal digits.
    """

    def __init__(self) -> None:
        self.run = token_hex(4)
        self._numbers = count(1)

    def metadata(self) -> Metadata:
        """Of the next call: its `x-request-id`, and a `traceparent` (W3C) that asks for it to be traced."""
        return (
            ("x-request-id", f"{self.run}-{next(self._numbers)}"),
            ("traceparent", f"00-{token_hex(16)}-{token_hex(8)}-01"),
        )
