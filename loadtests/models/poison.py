"""Y = X, unless a row of FP32 [rows, 4] begins with a marked value.

FAILS: ``execute`` raises, so everything in this call of it fails. REFUSED: an error for the one
request, the others in the call are answered. KILLS_MODEL: the model's own process dies.
KILLS_SERVER: the whole server does, as by a fault on the GPU.
"""

import os
import signal
from typing import Any

import triton_python_backend_utils as pb  # type: ignore[import-not-found]

FAILS, REFUSED, KILLS_MODEL, KILLS_SERVER = 1001.0, 1002.0, 1003.0, 1004.0


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        responses = []
        for request in requests:
            x = pb.get_input_tensor_by_name(request, "X").as_numpy()
            marks = x[:, 0]
            if (marks == KILLS_SERVER).any():
                os.kill(os.getppid(), signal.SIGKILL)
            if (marks == KILLS_MODEL).any():
                os._exit(1)
            if (marks == FAILS).any():
                raise ValueError("a row is poison")
            if (marks == REFUSED).any():
                error = pb.TritonError("a row is refused")
                responses.append(pb.InferenceResponse([], error))
            else:
                responses.append(pb.InferenceResponse([pb.Tensor("Y", x)]))
        return responses
