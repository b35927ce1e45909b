"""vLLM's sampling and pooling parameters as JSON on the bus, and back.

The one place in ``shared`` that imports vLLM: the gateway writes what an instance reads, and both
need the same pair of functions. Private fields travel too (EOS id, stop ids, bad-word ids, the
structured-output backend), so the instance validates nothing again and needs no tokenizer.
"""

from typing import Any

import msgspec
import numpy as np
from pydantic import JsonValue
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams


def sampling_to_json(params: SamplingParams) -> dict[str, JsonValue]:
    """``params`` as JSON values; fields at their defaults are left out."""
    return msgspec.to_builtins(params, str_keys=True, enc_hook=_array_to_list)


def sampling_from_json(fields: dict[str, JsonValue]) -> SamplingParams:
    """Inverse of ``sampling_to_json``: equal to the original, field by field."""
    return msgspec.convert(fields, SamplingParams, str_keys=True, dec_hook=_list_to_array)


def pooling_to_json(params: PoolingParams) -> dict[str, JsonValue]:
    """``params`` as JSON values by field name; fields that are None are left out."""
    values = msgspec.to_builtins(params, str_keys=True)
    named = zip(params.__struct_fields__, values, strict=True)
    return {name: value for name, value in named if value is not None}


def pooling_from_json(fields: dict[str, JsonValue]) -> PoolingParams:
    """Inverse of ``pooling_to_json``."""
    values = [fields.get(name) for name in PoolingParams.__struct_fields__]
    return msgspec.convert(values, PoolingParams, str_keys=True)


def _array_to_list(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise NotImplementedError(f"cannot send a {type(value).__name__}")


def _list_to_array(kind: type, value: Any) -> Any:
    if kind is np.ndarray:
        return np.asarray(value)
    raise NotImplementedError(f"cannot receive a {kind.__name__}")
