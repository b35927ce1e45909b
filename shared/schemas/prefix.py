"""Instance -> schedulers: which prompt prefixes it holds, told as changes, whole when asked."""

from typing import Literal

from pydantic import Field, TypeAdapter

from shared.schemas.message import InstanceId, Message


class PrefixUpdate(Message):
    """Chunks of prompts (``shared.prefixes``) that entered and left an instance's prefix cache."""

    kind: Literal["prefixes"] = "prefixes"
    instance_id: InstanceId
    sequence: int = Field(description="one more than that of the update before")
    chunk_tokens: int = Field(gt=0, description="length of a chunk")
    is_whole: bool = Field(
        default=False, description="forget what was known: ``added`` is all there is"
    )
    added: bytes = Field(default=b"", description="chunk hashes, eight bytes each")
    removed: bytes = Field(default=b"", description="chunk hashes, eight bytes each")


PREFIX_UPDATE: TypeAdapter[PrefixUpdate] = TypeAdapter(PrefixUpdate)
