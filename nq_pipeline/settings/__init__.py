"""Every setting of the program in one typed object.

    base.py     how a setting is declared, named and checked: `setting`, `SettingsGroup`, `VendorSettings`
    groups.py   the settings that belong to no vendor, one model per concern
    model.py    `Settings`, which holds all groups and the general settings such as NQ_DATA_DIR

Each vendor declares its own settings in `nq_pipeline.sources.<vendor>.spec`. The values come from the
environment and `.env` (`nq_pipeline.configuration.load`).
"""

from nq_pipeline.settings.model import Settings

__all__ = ["Settings"]
