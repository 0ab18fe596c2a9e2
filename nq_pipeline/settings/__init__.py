"""Every setting of the program in one typed object, one model per concern.

`nq_pipeline.configuration.load` reads them from the environment and `.env`. The vendors' own models are in
their packages below `nq_pipeline.sources`.
"""

from nq_pipeline.settings.model import Settings

__all__ = ["Settings"]
