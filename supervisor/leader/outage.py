"""What is said while the database is away: that it is, why, now and again for how long, and when it is back."""

from __future__ import annotations

import logging
import time

AGAIN_AFTER_S = (5.0, 25.0, 60.0)  # from one line to the next; the last one holds for hours


class Outage:
    """Told of every try, it logs at a bounded rate."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._since = self._say_at = 0.0
        self._said = 0

    def goes_on(self, error: BaseException) -> None:
        """The database could not be asked."""
        now = time.monotonic()
        if not self._said:
            self._since = now
            self._log.warning("the database is away; workers keep what they have begun, claim nothing and reconnect: %s", error)
        elif now >= self._say_at:
            self._log.warning("the database has been away for %.0f s: %s", now - self._since, error)
        else:
            return
        self._say_at = now + AGAIN_AFTER_S[min(self._said, len(AGAIN_AFTER_S) - 1)]
        self._said += 1

    def over(self) -> None:
        """The database answered."""
        if self._said:
            self._log.warning("the database is back after %.1f s", time.monotonic() - self._since)
            self._said = 0
