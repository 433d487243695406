"""The models that real servers run for tests and load tests; what each does stands in its file.

``NAME.pbtxt`` is the beginning of the ``config.pbtxt`` that Triton gets, ``NAME.py`` its
``model.py``, run by Triton's Python backend in a process of its own, where nothing of this
repository can be imported. ``mlserver_runtime`` is elementwise once more, for MLServer.
"""
