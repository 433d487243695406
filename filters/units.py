"""How a number of the configuration is written in the file: markers on plain types.

``gateway/config_source.py`` reads ``10ms`` or ``64KiB`` because of these markers, and JSON
Schema describes them; the value itself is a plain number, so nothing downstream parses strings.
"""

from typing import Annotated

import msgspec

Duration = Annotated[float, msgspec.Meta(ge=0, extra={"unit": "duration"})]
"""Seconds; written ``500ms``, ``10s``, ``5m``, ``1h``."""
Size = Annotated[int, msgspec.Meta(ge=0, extra={"unit": "size"})]
"""Bytes; written ``64KiB``, ``1MiB``."""
Share = Annotated[float, msgspec.Meta(ge=0, le=1, extra={"unit": "share"})]
"""From 0 to 1; written ``5%``."""
Quantile = Annotated[float, msgspec.Meta(ge=0.5, le=0.999, extra={"unit": "quantile"})]
"""From 0.5 to 0.999; written ``p95``, ``p99.9``."""
Rate = Annotated[float, msgspec.Meta(gt=0, extra={"unit": "rate"})]
"""Per second; written ``100/s``, ``600/m``, ``1000/h``, ``1/d``."""
Count = Annotated[int, msgspec.Meta(ge=1)]
HeaderName = Annotated[str, msgspec.Meta(extra={"unit": "header"})]
"""A header's name, in lower case once loaded."""
HashKey = Annotated[str, msgspec.Meta(extra={"unit": "hash_key"})]
"""Whom requests are told apart by: ``header:NAME``; without the header, the client's address."""


class Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every configuration struct has in common: immutable, no unknown keys."""
