"""y = 2 x + 1 for FP32 [rows, 16], at a price.

The price is that of a GPU as seen from the host: seconds for each call of ``execute`` and for each
row in it, slept, not computed. A sleep leaves the cores of this machine to the servers, proxies and
clients that are measured, as inference on a GPU would. The kernel adds about 0.1 ms to each sleep.
"""

import time
from typing import Any

import triton_python_backend_utils as pb  # type: ignore[import-not-found]


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        given = pb.ModelConfig(args["model_config"]).as_dict()["parameters"]
        self.per_call = float(given["per_call"]["string_value"])
        self.per_row = float(given["per_row"]["string_value"])

    def execute(self, requests: list[Any]) -> list[Any]:
        rows = 0
        responses = []
        for request in requests:
            x = pb.get_input_tensor_by_name(request, "X").as_numpy()
            rows += len(x)
            responses.append(pb.InferenceResponse([pb.Tensor("Y", 2 * x + 1)]))
        if price := self.per_call + rows * self.per_row:
            time.sleep(price)
        return responses
