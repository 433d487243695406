"""Every input comes back as it is: X_BOOL as Y_BOOL, and so on for each datatype, [rows, n].

All are optional; what was not given is not answered. BF16, which NumPy does not know, is handed on
as the backend has it.
"""

from typing import Any

import triton_python_backend_utils as pb  # type: ignore[import-not-found]


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        return [pb.InferenceResponse([_echo(x) for x in each.inputs()]) for each in requests]


def _echo(x: Any) -> Any:
    name = x.name().replace("X", "Y", 1)
    if name == "Y_BF16":
        return pb.Tensor.from_dlpack(name, x.to_dlpack())
    return pb.Tensor(name, x.as_numpy())
