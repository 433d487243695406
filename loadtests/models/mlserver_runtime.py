"""elementwise (y = 2 x + 1 for FP32 [rows, 16], at a price), as MLServer runs it."""

import asyncio

import numpy as np
from mlserver import MLModel  # type: ignore[import-not-found]
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found]
from mlserver.types import (  # type: ignore[import-not-found]
    InferenceRequest,
    InferenceResponse,
)


class Elementwise(MLModel):  # type: ignore[misc]
    async def load(self) -> bool:
        given = self.settings.parameters.extra
        self.per_call, self.per_row = given["per_call"], given["per_row"]
        # One batch at a time, as on one GPU; MLServer runs as many as there are requests.
        self.device = asyncio.Lock()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = NumpyCodec.decode_input(payload.inputs[0])
        y = (2 * x + 1).astype(np.float32)
        async with self.device:
            if price := self.per_call + len(x) * self.per_row:
                await asyncio.sleep(price)
        outputs = [NumpyCodec.encode_output("Y", y)]
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=outputs)
