"""The calls as they come in and go out: counts of their codes, and a record of each for whoever wants one.

Where neither an access log nor traces are wanted, a call costs one more entry in a dict.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from itertools import count
from secrets import token_hex
from typing import Any, Protocol
from urllib.parse import unquote

from serve.call import CURRENT, Call
from serve.errors import abort, code_of
from serve.faults import NotAccepting, ServerFull
from serve.received import Received

REQUEST_ID = "x-request-id"
# What is taken over from a caller: it goes into a header and into log lines.
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Watcher(Protocol):
    """Is told of every call, on the event loop."""

    def begin(self, call: Call, metadata: Mapping[str, str]) -> None:
        """It came in, with the caller's metadata."""

    def end(self, call: Call) -> None:
        """It has its answer, which is on its way."""


class Calls:
    """Counts the calls of our services and tells the watchers. For the event loop's thread; read from any.

    Attributes:
        codes: (method, name of the gRPC status) -> how many.
        refused: why there was no room -> how many; every reason is there from the start.
        watchers: told in this order; none, and no record is made.
    """

    def __init__(self) -> None:
        self.codes: dict[tuple[str, str], int] = {}
        self.refused = dict.fromkeys((*ServerFull.REASONS, "closed"), 0)
        self.watchers: list[Watcher] = []
        self._made = token_hex(6)
        self._numbers = count(1)

    def unary(
        self, method: str, answer: Callable[[Received, Any], Awaitable[Any]]
    ) -> Callable[[Received, Any], Awaitable[Any]]:
        """The handler of a call: `answer(received, context)`, whose errors become its status."""

        async def handle(received: Received, context: Any) -> Any:
            call = self._begin(method, received.size, context)
            try:
                received.check()
                response = await answer(received, context)
            except asyncio.CancelledError:
                self._end(method, call, _given_up(context))
                raise
            except Exception as error:
                self._fail(method, call, error)
                await abort(context, error)
            self._end(method, call, "OK")
            return response

        return handle

    def refuser(self, method: str, error: Exception) -> Callable[[Any, Any], Coroutine[Any, Any, None]]:
        """The handler of a call that gets `error` before its message is read."""

        async def refuse(requests: Any, context: Any) -> None:
            call = self._begin(method, 0, context)
            self._fail(method, call, error)
            await abort(context, error)

        return refuse

    async def one(self, method: str, received: Received, context: Any, answer: Awaitable[Any]) -> Any:
        """`answer` to one of the requests of a stream; raises what it raises."""
        call = self._begin(method, received.size, context, own=False)
        try:
            response = await answer
        except asyncio.CancelledError:
            self._end(method, call, _given_up(context))
            raise
        except Exception as error:
            self._fail(method, call, error)
            raise
        self._end(method, call, "OK")
        return response

    def _begin(self, method: str, size: int, context: Any, own: bool = True) -> Call | None:
        """`own`: the call holds this one request, so that its id goes back with it."""
        if not self.watchers:
            return None
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        told = metadata.get(REQUEST_ID, "")
        if not (own and _REQUEST_ID.fullmatch(told)):
            told = f"{self._made}-{next(self._numbers)}"
        call = Call(method, unquote(context.peer()), size, time.monotonic(), told)
        if own:
            context.set_trailing_metadata(((REQUEST_ID, told),))
        for watcher in self.watchers:
            watcher.begin(call, metadata)
        CURRENT.set(call)
        return call

    def _fail(self, method: str, call: Call | None, error: Exception) -> None:
        if isinstance(error, ServerFull):
            self.refused[error.reason] = self.refused.get(error.reason, 0) + 1
        elif isinstance(error, NotAccepting):
            self.refused["closed"] += 1
        self._end(method, call, code_of(error).name)

    def _end(self, method: str, call: Call | None, code: str) -> None:
        self.codes[method, code] = self.codes.get((method, code), 0) + 1
        if call:
            call.ended, call.code = time.monotonic(), code
            # Later, so that the answer does not wait for it.
            asyncio.get_running_loop().call_soon(self._tell, call)

    def _tell(self, call: Call) -> None:
        for watcher in self.watchers:
            watcher.end(call)


def _given_up(context: Any) -> str:
    """Why gRPC cancelled a call: the caller's deadline, or the caller."""
    left = context.time_remaining()
    return "DEADLINE_EXCEEDED" if left is not None and left <= 0 else "CANCELLED"
