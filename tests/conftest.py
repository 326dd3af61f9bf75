"""The plugins of this suite, by name; and no examples against the clock."""

from __future__ import annotations

from hypothesis import settings

pytest_plugins = ["tests.plugins.lab", "tests.plugins.options", "tests.plugins.order"]

# Others use the machine too: how long an example took says nothing of what it tries.
settings.register_profile("serai", deadline=None)
settings.load_profile("serai")
