"""The settings: read once, frozen, and handed down as values.

`load` gathers them from nightshift.toml, the environment and the command line; `Settings`
is what everything else is given. Knows nothing of what the settings are used for.
"""

from pipeline.settings.description import KnownSetting
from pipeline.settings.fields import Settings, known_settings
from pipeline.settings.loading import LoadedSettings, load

__all__ = ["KnownSetting", "LoadedSettings", "Settings", "known_settings", "load"]
