"""Real servers of the Open Inference Protocol, for tests, load tests and ``make triton``.

    async with TritonServer([elementwise(), masked(), poison()]) as triton: ...
    async with MlServer([mlserver_elementwise(batched=True)]) as server: ...

Neither needs a container or a GPU. Both come from PyPI and lie in ``.servers/``, apart from the
environment of tailrace, whose versions they would change.
"""
