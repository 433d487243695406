"""Of VALUES [rows, n] where MASK is true: their SUM [rows, 1], and all of them DOUBLED [rows, n].

What is not under the mask adds nothing to SUM, and is -1 in DOUBLED, so that padding which reaches
a caller can be seen.
"""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb  # type: ignore[import-not-found]


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        responses = []
        for request in requests:
            values = pb.get_input_tensor_by_name(request, "VALUES").as_numpy()
            mask = pb.get_input_tensor_by_name(request, "MASK").as_numpy()
            total = np.where(mask, values, 0).sum(axis=1, keepdims=True, dtype=np.float32)
            doubled = np.where(mask, 2 * values, -1).astype(np.float32)
            outputs = [pb.Tensor("SUM", total), pb.Tensor("DOUBLED", doubled)]
            responses.append(pb.InferenceResponse(outputs))
        return responses
