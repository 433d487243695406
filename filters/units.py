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
Count = Annotated[int, msgspec.Meta(ge=1)]


class Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every configuration struct has in common: immutable, no unknown keys."""
