"""The reliability filters: pure policies with thin async glue. Imports nothing of the gateway."""
