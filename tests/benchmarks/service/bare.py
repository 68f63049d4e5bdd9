"""What submissions are measured against: FastAPI, SQLAlchemy, one INSERT of the same document, and nothing else.

`python -m tests.benchmarks.service.bare DATABASE_URL PORT`.
"""

import secrets
import sys
from datetime import UTC, datetime
from typing import Any

import uvicorn
from fastapi import FastAPI
from sqlalchemy import JSON, BigInteger, DateTime, String, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from service.contract import Comparison


class Base(DeclarativeBase):
    pass


class DocumentRow(Base):
    __tablename__ = "documents"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    public_id: Mapped[str] = mapped_column(String(32), unique=True)
    document: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


def make_app(url: str) -> FastAPI:
    """An app with one route, whose table is made."""
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    app = FastAPI()

    @app.post("/", status_code=201)
    def insert(comparison: Comparison) -> dict[str, str]:
        """Validate as the service does, insert, commit, answer with the id."""
        with Session(engine) as session, session.begin():
            row = DocumentRow(
                public_id=secrets.token_hex(10),
                document=comparison.model_dump(mode="json"),
                created_at=datetime.now(UTC),
            )
            session.add(row)
            session.flush()
            public_id = row.public_id
        return {"id": public_id}

    return app


if __name__ == "__main__":
    uvicorn.run(make_app(sys.argv[1]), port=int(sys.argv[2]), access_log=False, log_config=None)
