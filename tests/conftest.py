"""What every test shares: hypothesis never judges a test by the machine's speed."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "tailrace", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("tailrace")
