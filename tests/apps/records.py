"""Workflows that are started from files."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date

import msgspec

from supervisor import step, workflow
from tests.harness import note


class Position(msgspec.Struct):
    sku: str
    quantity: int = 1


@dataclass
class Sale:
    id: int
    cents: int
    positions: list[Position] = field(default_factory=list)
    day: date | None = None


@step
def charge_sale(sale: Sale) -> int:
    note("charge_sale", sale.id)
    if sale.cents < 0:
        raise ValueError(f"sale {sale.id} has {sale.cents} cents")
    if sale.cents == 13:
        raise LookupError(f"nobody sells {sale.id} for that")
    return sale.cents * 2


@workflow
async def sell(sale: Sale) -> int:
    return await charge_sale.aio(sale)


@workflow
async def stamp(id: str, word: str, times: int = 1) -> str:
    return f"{id}:{word * times}"


@workflow
async def repeat_word(word: str) -> str:
    return word
