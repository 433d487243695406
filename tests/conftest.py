"""What every test shares: hypothesis never judges a test by the machine's speed, and looks in new
places each time, also where ``CI`` is set, which would make it look in the same ones."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "tailrace",
    deadline=None,
    derandomize=False,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("tailrace")
