"""One line of the doctor's screen."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

Status = Literal["ok", "warn", "fail"]


class Finding(BaseModel):
    """What was looked at, how it is, and what to do about it unless it is fine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    status: Status
    detail: str
    mend: str | None = None

    @model_validator(mode="after")
    def says_how_to_mend(self) -> "Finding":
        if (self.status == "ok") != (self.mend is None):
            raise ValueError(f"{self.name}: what is not ok says how to mend it, and nothing else")
        return self


def ok(name: str, detail: str) -> Finding:
    return Finding(name=name, status="ok", detail=detail)


def warn(name: str, detail: str, mend: str) -> Finding:
    return Finding(name=name, status="warn", detail=detail, mend=mend)


def fail(name: str, detail: str, mend: str) -> Finding:
    return Finding(name=name, status="fail", detail=detail, mend=mend)
