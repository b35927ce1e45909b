"""What the endpoint says of itself: its model, how long a request may be, its version."""

import json
from dataclasses import dataclass
from pathlib import Path

import httpx

from shared.errors import DynaServeError, InvalidRequest

SAFE_VOCAB_SIZE = 1000
"""For models whose configuration cannot be read here: every one has this many tokens."""
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible server."""

    url: str
    model: str
    max_model_len: int | None
    vocab_size: int | None
    server_version: str | None


async def find_endpoint(url: str, model: str | None, headers: dict[str, str]) -> Endpoint:
    """Ask ``url``. Raises DynaServeError when nobody answers, InvalidRequest for a wrong model."""
    url = url.rstrip("/").removesuffix("/v1")
    async with httpx.AsyncClient(timeout=TIMEOUT_S, headers=headers) as client:
        try:
            answer = await client.get(f"{url}/v1/models")
            answer.raise_for_status()
            served = answer.json()["data"]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise DynaServeError(f"no OpenAI endpoint at {url}: {error!r}") from error
        version = await _version(client, url)
    found = next((each for each in served if model in (None, each["id"])), None)
    if found is None:
        names = ", ".join(each["id"] for each in served)
        raise InvalidRequest(f"{url} serves {names or 'nothing'}, not {model}", "model")
    return Endpoint(
        url,
        found["id"],
        found.get("max_model_len"),
        vocab_size_of(found.get("root") or found["id"]),
        version,
    )


async def _version(client: httpx.AsyncClient, url: str) -> str | None:
    try:
        answer = await client.get(f"{url}/version")
        version = answer.json()["version"]
    except (httpx.HTTPError, ValueError, KeyError):
        return None
    return str(version)


def vocab_size_of(folder: str) -> int | None:
    """From the model's configuration, where its folder is on this host."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text())
    except (OSError, ValueError):
        return None
    size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    return int(size) if size else None
