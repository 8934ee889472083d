"""What the tests' handlers read and write."""

from uuid import uuid4

from pydantic import BaseModel
from sqlalchemy import BigInteger, DateTime, Identity, Integer, Text, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Effect(Base):
    """Append-only. The mapper wants a key, the table has none: a doubled effect is two rows."""

    __tablename__ = "effects"

    number: Mapped[str] = mapped_column(Text, default=lambda: uuid4().hex)
    sequence: Mapped[int] = mapped_column(BigInteger, Identity(always=True))
    message_id: Mapped[str] = mapped_column(Text)
    partition: Mapped[int] = mapped_column(Integer)
    offset: Mapped[int] = mapped_column(BigInteger)
    account: Mapped[str] = mapped_column(Text)
    amount: Mapped[int] = mapped_column(BigInteger)
    pid: Mapped[int] = mapped_column(Integer)
    inserted_at: Mapped[str] = mapped_column(DateTime(timezone=True), server_default=func.clock_timestamp())

    __mapper_args__ = {"primary_key": [number], "eager_defaults": False}  # noqa: RUF012 - SQLAlchemy's own way to say it


class Payment(BaseModel):
    account: str
    amount: int
    kind: str = "ok"
