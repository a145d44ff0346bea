"""The shop's front: dispatches inside its own transactions, and says what it saw as one JSON document."""

from __future__ import annotations

import asyncio
import json
import os

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from agentmesh import ACPClient, BIRRouter, TraceWriter
from agentmesh.errors import TraceFailed


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "shop_orders"
    number: Mapped[int] = mapped_column(primary_key=True)


def main() -> None:
    router = BIRRouter(acp_client=ACPClient(), trace_writer=TraceWriter())
    url = sa.make_url(os.environ["AGENTMESH_DATABASE_URL"]).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(url)
    Base.metadata.create_all(engine)

    order = Order(number=7)
    with Session(engine, expire_on_commit=False) as db, db.begin():
        db.add(order)
        trace = router.dispatch(intent="check_order", from_id="shop", to_id="complaints",
                                context_id=f"order-{order.number}", payload={"order": order.number}, session=db,
                                idempotency_key=f"check-{order.number}")  # fmt: skip
    result = trace.result(timeout=30)

    async def follow() -> list[str]:
        return [event["name"] async for event in trace.follow()]

    followed = asyncio.run(follow())

    with Session(engine) as db:  # rolled back: neither the order nor the intent exists
        db.add(Order(number=8))
        unwanted = router.dispatch("check_order", "shop", "complaints", "order-8", {"order": 8}, session=db)
        db.rollback()

    again = router.dispatch("check_order", "shop", "complaints", "order-7", {"order": 7}, idempotency_key="check-7")
    refused = router.dispatch("check_order", "shop", "complaints", "order-0", {"order": -1})
    try:
        refused.result(timeout=30)
        failure = "none"
    except TraceFailed as exc:
        failure = str(exc)
    with Session(engine) as db:
        orders = list(db.scalars(sa.select(Order.number)))
        traces = db.scalar(sa.text("SELECT count(*) FROM mesh.traces WHERE id = :id"), {"id": unwanted.id})
    said = {
        "id": str(trace), "again": str(again), "status": trace.status(), "result": result, "followed": followed,
        "orders": orders, "unwanted": traces, "failure": failure,
    }  # fmt: skip
    print(json.dumps(said), flush=True)  # noqa: T201 - its answer
    engine.dispose()


if __name__ == "__main__":
    main()
