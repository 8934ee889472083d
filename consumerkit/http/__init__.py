"""The HTTP edge: idempotent endpoints for Starlette and FastAPI, on the same ledger as the handlers.

    edge = Idempotency(database=engine, name="shop")

    @edge.idempotent(scope=current_user)
    async def place(request: Request) -> Response:
        session = edge.session(request)
        session.add(Order(**await request.json()))
        return JSONResponse({"placed": True}, status_code=201)

The key's row, the endpoint's changes, its outbox messages and its answer are one transaction, which is committed before
the answer is sent. FastAPI's routers need `route_class=IdempotentRoute`, from `consumerkit.http.fastapi`.
"""

from consumerkit.http.edge import Idempotency
from consumerkit.http.status_page import accepted, status_route

__all__ = ["Idempotency", "accepted", "status_route"]
