"""The shop's own tables, and the messages that its handlers pass on."""

from typing import Literal

from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Status = Literal["placed", "reserved", "paid", "refused", "cancelled"]


class Base(DeclarativeBase): ...


class Order(Base):
    """One order. Its status moves forward only: placed, reserved, paid; or it is refused or cancelled."""

    __tablename__ = "shop_orders"
    id: Mapped[str] = mapped_column(primary_key=True)
    customer: Mapped[str]
    item: Mapped[str]
    quantity: Mapped[int]
    cents: Mapped[int]
    status: Mapped[str]


class Item(Base):
    """What is for sale, and how much of it is left."""

    __tablename__ = "shop_items"
    name: Mapped[str] = mapped_column(primary_key=True)
    cents: Mapped[int]
    left: Mapped[int]


class Points(Base):
    """What a customer has collected."""

    __tablename__ = "shop_points"
    customer: Mapped[str] = mapped_column(primary_key=True)
    total: Mapped[int]


class Placed(BaseModel):
    """The message that goes from handler to handler. Its ID is the order's, for each of them."""

    order_id: str
    customer: str
    item: str
    quantity: int
    cents: int
