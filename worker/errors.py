"""An exception is a disposition: dead-letter the entry, leave it pending, or stop the worker.

Reject            the entry itself is bad: publish it to the dead stream with the reason
NotDelivered      Redis refused one entry: tried again, or left pending if the fault is the entry's own
REDIS_ERRORS      Redis cannot be reached, or refuses a whole command: nothing is lost, try again
Fatal             the worker cannot run: one clear line, exit code not 0
anything else     a fault in this program: count it, log it, leave the entries pending
"""

from __future__ import annotations

from typing import Literal

from redis.exceptions import RedisClusterException, RedisError

REDIS_ERRORS = (RedisError, RedisClusterException, OSError, RuntimeError)
"""RuntimeError is what uvloop raises where redis-py sends on a connection that has been closed."""

RejectReason = Literal["missing_text", "empty_text", "wrong_type", "invalid_utf8", "invalid_json", "too_large", "too_many_fields", "poison"]


class Reject(Exception):
    """An entry that can never be classified.

    Args:
        reason: one word for metrics and filters.
        detail: a sentence for people that names the field; never holds the query's text.
    """

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: RejectReason = reason
        self.detail = detail


class NotDelivered(Exception):
    """Redis refused to take one entry.

    Args:
        message: Redis' own.
        code: the word with which Redis says why, such as OOM, where waiting may help; `other` where it will not.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def temporary(self) -> bool:
        """Nothing is wrong with the entry: Redis' memory, role or permissions are, or its destination, until someone mends them."""
        return self.code != "other"


class Fatal(Exception):
    """The worker cannot start or go on; the message says what is wrong and what to do."""

    exit_code = 1


class SettingsError(Fatal):
    """Settings that are unknown, malformed or contradict each other; lists all of them."""

    exit_code = 2
