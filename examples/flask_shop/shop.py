"""A shop: the order, what is left in stock and the work on it are accepted by one commit, or none of them is."""

from __future__ import annotations

import sqlalchemy as sa
from flask import Flask, abort, request
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from agentmesh import ACPClient, BIRRouter


class Base(DeclarativeBase):
    pass


class Stock(Base):
    __tablename__ = "shop_stock"
    item: Mapped[str] = mapped_column(primary_key=True)
    left: Mapped[int]


class Order(Base):
    __tablename__ = "shop_orders"
    number: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]
    count: Mapped[int]
    parcel: Mapped[str | None]
    trace: Mapped[str]


def create_app(client: ACPClient | None = None) -> Flask:
    """`flask --app shop run` calls it. The tables are the shop's own, in the database that has the mesh."""
    client = client or ACPClient()  # the settings of agentmesh.toml
    router = BIRRouter(acp_client=client)
    engine = sa.create_engine(client.mesh.database_url)
    Base.metadata.create_all(engine)
    with Session(engine) as db, db.begin():
        db.merge(Stock(item="lamp", left=3))
    app = Flask(__name__)
    app.extensions["engine"] = engine

    @app.post("/orders")
    def place() -> tuple[dict[str, object], int]:
        """Raises 409 where too little is left: then there is no order, and nobody is asked to ship it."""
        asked = request.get_json()
        number, item, count = int(asked["number"]), str(asked["item"]), int(asked["count"])
        with Session(engine) as db, db.begin():
            trace = router.dispatch(
                intent="ship", from_id="shop", to_id="warehouse", context_id=f"order-{number}",
                payload={"number": number, "item": item, "count": count}, session=db,
            )  # fmt: skip
            db.add(Order(number=number, item=item, count=count, trace=str(trace)))
            enough = sa.update(Stock).where(Stock.item == item, Stock.left >= count).values(left=Stock.left - count)
            if db.execute(enough).rowcount == 0:  # type: ignore[attr-defined]
                abort(409, f"there are no {count} of {item} left")
        return {"number": number, "trace": str(trace)}, 201  # committed: the warehouse's doorbell has rung

    @app.get("/orders/<int:number>")
    def show(number: int) -> dict[str, object]:
        with Session(engine) as db:
            order = db.get(Order, number) or abort(404)
            return {"number": number, "parcel": order.parcel, "trace": order.trace}

    return app
