"""PDServings that no event reported: a list of them now and then, beside kopf's watch.

kopf reports what is deleted while it watches. What is deleted while it cannot, before it lists
anew, it never mentions.
"""

import asyncio
import logging
import random

from pds_operator import errors, names
from pds_operator.run.api import TRANSIENT, Api
from pds_operator.run.cluster import Store

log = logging.getLogger("pds_operator.parents")


async def look_for_ever(api: Api, store: Store, namespaces: list[str], seconds: float) -> None:
    """List them about every `seconds`, replicas not all at once."""
    while True:
        await asyncio.sleep(seconds * random.uniform(0.8, 1.2))
        try:
            await look(api, store, namespaces)
        except errors.ApiError as error:
            log.warning("listing PDServings: %s", error.message)
        except TRANSIENT as error:
            log.warning("listing PDServings: %s", error or type(error).__name__)


async def look(api: Api, store: Store, namespaces: list[str]) -> None:
    """Once. Raises ApiError, TRANSIENT."""
    places: list[str | None] = [*namespaces] or [None]
    for place in places:
        before = store.parents()
        items, version = await api.list(names.KIND, place)
        listed = int(version) if version.isdecimal() else 0
        for key in store.replace_parents(place, items, listed, before):
            log.info("%s/%s: no event has reported that it came or went", *key)
