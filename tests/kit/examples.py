# SPDX-License-Identifier: Apache-2.0
"""How many examples Hypothesis tries: all of them in `make test`, a few in `make check`."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

FULL, CHECK = "full", "check"

_SLOW_IS_ALLOWED = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    FULL, deadline=None, print_blob=True, suppress_health_check=_SLOW_IS_ALLOWED
)
settings.register_profile(CHECK, settings.get_profile(FULL), max_examples=20)
settings.load_profile(FULL)


def examples(count: int) -> settings:
    """Ask for more examples than Hypothesis would try, or fewer; `make check` caps them."""
    cap = settings.get_profile(CHECK).max_examples
    checking = settings().max_examples == cap  # what is not named comes from the profile in use
    return settings(max_examples=min(count, cap) if checking else count)
