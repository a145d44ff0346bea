"""When a cron expression comes next."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from agentmesh.errors import BadRule


def following(cron: str, timezone: str, after: datetime) -> str:
    """The next moment of `cron` in that zone after `after`, as RFC 3339. Raises BadRule."""
    try:
        return next(CronSim(cron, after.astimezone(ZoneInfo(timezone)))).isoformat()
    except CronSimError as exc:
        raise BadRule(
            f"this is no cron expression: {exc}", value=cron, expected="five fields, such as 0 9 * * 1-5"
        ) from None
    except (ZoneInfoNotFoundError, ValueError):
        raise BadRule("no time zone has this name", value=timezone, expected="such as Europe/Berlin") from None
    except StopIteration:
        raise BadRule("this cron expression never comes", value=cron) from None
